"""The command `lora-clip`, which is also `python -m lora_clip`: one sub-command for each thing that one does.

Exit status: 0 done; 2 something to correct, and one message says what; 130 Ctrl-C. What else a sub-command returns
stands in its help. Imports that take seconds stand inside the functions that need them: help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from lora_clip import __version__
from lora_clip.app.exits import INTERRUPTED, USER_ERROR, until_nobody_reads
from lora_clip.errors import LoraClipError
from lora_clip.terminal import align

DESCRIPTION = "Embed a whole image collection with a LoRA-adapted CLIP model, then search it."
EMBED = "embed"
COMMANDS = {
    EMBED: "Embed an image collection; without arguments, the demo's pictures.",
    "pack": "Pack a folder tree of images into WebDataset shards.",
    "verify": "Prove an output complete and sound.",
    "index": "Build the search index of an output, or bring it up to date.",
    "search": "Search an output with texts, image files, or its own images.",
    "serve": "Open a search page over outputs on this machine.",
    "evaluate": "Tell how well the captions or labels of an output find its images, and images their texts.",
    "compare": "Show which of several outputs finds best, and what changed between two.",
    "embed-text": "Embed the lines of a text file, by the model of an output or any other.",
    "export": "Write an output as a Lance, Parquet or Hugging Face dataset, or what is new of it.",
    "classify": "Give each image of an output the best of some labels.",
    "benchmark": "Measure the job beside the loops that people write.",
    "completion": "Print what completes commands and keys in a shell.",
}
"""Every sub-command with its sentence; each is a module in `subcommands`, with _ for -, but for `embed`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status; `embed` exits by itself."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed[:1] == [EMBED]:
        from lora_clip.app import embed

        embed.main(typed[1:], "lora-clip embed")
    with until_nobody_reads():
        return _run(typed)


def _run(typed: Sequence[str]) -> int:
    parser = build_parser(typed[0] if typed else None)
    if not typed:
        parser.print_help()
        return USER_ERROR
    given = parser.parse_args(typed)
    return answer(lambda: given.run(given))


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of the command line, with the arguments of the chosen sub-command alone: the others stay unread."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "lora-clip", description=DESCRIPTION, epilog=_listed(), formatter_class=as_it_stands
    )
    parser.add_argument("--version", action="version", version=f"lora-clip {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name, sentence in COMMANDS.items():
        command = commands.add_parser(name, formatter_class=as_it_stands)
        if name == chosen:
            _fill(command, sentence, import_module(f"lora_clip.app.subcommands.{name.replace('-', '_')}"))
    return parser


def _listed() -> str:
    """The sub-commands with their sentences."""
    lines = [f"  {line}" for line in align(list(COMMANDS.items()))]
    more = "lora-clip COMMAND --help tells what a command takes; embed takes KEY=VALUE, as in conf/."
    return "\n".join(["commands:", *lines, "", more])


def _fill(command: argparse.ArgumentParser, sentence: str, module: ModuleType) -> None:
    """Give a sub-command its arguments, its function, and as its description what its module says of it."""
    more = (module.__doc__ or "").partition("\n\n")[2].strip()
    command.description = f"{sentence}\n\n{more}".strip()
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def answer(run: Callable[[], int]) -> int:
    """The exit status of a sub-command, with what a user can correct as one message."""
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
