"""Prove an output complete and sound: `python scripts/verify.py OUTPUT`; exit status 0 sound, 1 not, 2 no output.

Counts are compared with the input itself where it can still be read, and with what was recorded of it where not.
"""

import argparse
import sys
from pathlib import Path

from lora_clip.diagnose.summary import counts
from lora_clip.errors import LoraClipError
from lora_clip.inspection.recheck import recheck


def main() -> int:
    """Verify, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="the output_dir of a job")
    try:
        verdict, notes = recheck(parser.parse_args().output)
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*notes, sep="\n", end="\n" if notes else "")
    for problem in verdict.problems:
        print(f"problem: {problem}")
    print(f"{'sound' if verdict.sound else 'NOT SOUND'}: {counts(verdict)}")
    return 0 if verdict.sound else 1


if __name__ == "__main__":
    sys.exit(main())
