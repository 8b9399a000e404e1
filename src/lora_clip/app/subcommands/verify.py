"""`lora-clip verify OUTPUT [OUTPUT …]`.

Counts are compared with the input itself where it can still be read, and with what was recorded of it where not.
Exit status: 0 sound, 1 not, 2 no output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

UNSOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("outputs", metavar="OUTPUT", nargs="+", type=Path, help="the output_dir of a job")


def run(given: argparse.Namespace) -> int:
    """Verify, print what was found, and return the exit status. Raises OutputError where there is no output."""
    found = [verify(root, named=len(given.outputs) > 1) for root in given.outputs]
    return 0 if all(found) else UNSOUND


def verify(root: Path, named: bool) -> bool:
    """Verify one output and print what was found, under its name where it is `named`; whether it is sound."""
    from lora_clip.diagnose.summary import counts
    from lora_clip.inspection.recheck import recheck

    if named:
        print(root)
    verdict, notes = recheck(root)
    print(*notes, sep="\n", end="\n" if notes else "")
    for problem in verdict.problems:
        print(f"problem: {problem}")
    print(f"{'sound' if verdict.sound else 'NOT SOUND'}: {counts(verdict)}")
    return verdict.sound
