"""The configuration as a person reads it: `--help`, and docs/configuration.md (REGENERATE says how it is made)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from lora_clip.config import KEYS, OPTIONS, Key

REGENERATE = "python -m lora_clip.app.usage > docs/configuration.md"
WIDTH = 100
HELP = """\
Embed an image collection with a LoRA-adapted CLIP model: every image exactly once.

usage: {program} [key=value …]

  {program}
      the pictures and the model that come with the project, into outputs/
  {program} data=folder data.folder=/data/images model.adapter=/models/my-lora \\
      output_dir=/data/emb
      a folder of images, with the base model that the adapter names
  {program} data=shards data.shards=/data/shards model.adapter=/models/my-lora \\
      model.base=openai/clip-vit-base-patch32 output_dir=/data/emb
      WebDataset shards
  {program} -m data.batch_size=64,128,256 …
      a sweep: a run for each value, then a table and the best of them

The same command again does only what is missing.

{keys}

debug=small: {small}

Of Hydra: --cfg job prints what a command would run with; -m sweeps; --hydra-help tells the rest.
Exit status: 0 done, 2 something to correct (one message says what), 12 out of memory, 130 Ctrl-C,
143 SIGTERM. Read on in README.md and docs/configuration.md.
"""
PAGE = """\
# Configuration

What can be typed after `lora-clip embed`, as `key=value`. This page is made from
[the schema](../src/lora_clip/config.py) by `{regenerate}`.

- `lora-clip embed --help` shows the same keys; `--cfg job`, after other arguments, prints what they amount to.
- `null` stands for nothing, `[a,b]` is a list. A value with one of `{{ }} [ ] ( ) , : =` or a blank in it goes into two
  pairs of quotes: `'data.shards="/data/{{00000..00056}}.tar"'`.
- `debug=small`: {small}.
- A source of your own may take a key that the schema lacks, with a plus: `+data.cbz=/data/comics`.
- A key that does not exist, or a value that its key does not take, is one message and exit status 2.

{tables}
"""


def help_text(program: str) -> str:
    """What `program --help` prints, in lines of 100 columns at most."""
    sections = "\n\n".join(_section(list(group)) for group in _groups())
    return HELP.format(program=program, keys=sections, small=OPTIONS["debug"]["small"])


def page() -> str:
    """docs/configuration.md."""
    tables = "\n\n".join(_table(list(group)) for group in _groups())
    return PAGE.format(tables=tables, regenerate=REGENERATE, small=OPTIONS["debug"]["small"])


def _groups() -> Iterator[Iterable[Key]]:
    return (group for _, group in groupby(KEYS, lambda key: key.group))


def _title(group: Sequence[Key]) -> str:
    return str(group[0].group.__doc__).rstrip(".")


def _options(group: Sequence[Key]) -> dict[str, str]:
    names = [group[0].name.rpartition(".")[0], *(key.name for key in group)]
    return {f"{name}={option}": said for name in names for option, said in OPTIONS.get(name, {}).items()}


def _section(group: Sequence[Key]) -> str:
    options = [_line(typed, sentence) for typed, sentence in _options(group).items()]
    return "\n".join([_title(group), *options, *(_line(f"{key.name:21}{key.default}", key.sentence) for key in group)])


def _line(head: str, sentence: str) -> str:
    """A head and its sentence, side by side, the sentence in a column of its own."""
    indent = " " * 34
    return textwrap.fill(sentence, WIDTH, initial_indent=f"  {head:31} ", subsequent_indent=indent)


def _table(group: Sequence[Key]) -> str:
    options = [f"- `{typed}`: {sentence}" for typed, sentence in _options(group).items()]
    rows = [f"| `{key.name}` | {_code(key.default)} | {key.takes.words} | {key.sentence} |" for key in group]
    head = ["| key | default | takes | what it is |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {_title(group)}", "", *([*options, ""] if options else []), *head, *rows])


def _code(default: str) -> str:
    return default if " " in default else f"`{default}`"


if __name__ == "__main__":
    print(page(), end="")
