"""One step as a process of its own: what it crashes, or leaves in the GPU's memory, is no other step's trouble.

python -m lora_clip.benchmark.gpu.child MODULE:FUNCTION FILE.json SETTINGS
"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from lora_clip.benchmark.gpu.findings import DONE, FAILED, NOT_HERE, Findings, UnavailableError, words
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.io.process import end_with_parent


def main() -> int:
    """Run it, and tell how it ended."""
    end_with_parent()
    function, path, settings = sys.argv[1:]
    findings = Findings(Path(path))
    module, _, name = function.partition(":")
    try:
        getattr(import_module(module), name)(Settings.from_json(settings), findings)
    except UnavailableError as error:
        findings.end(NOT_HERE, str(error))
    except Exception as error:
        traceback.print_exc()
        findings.end(FAILED, words(error))
        return 1
    else:
        findings.end(DONE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
