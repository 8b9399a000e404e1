"""What a run of pack tells at its end, and the words it shares with the messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lora_clip.pack.index import PackedShard
from lora_clip.terminal import command, count_of


@dataclass(frozen=True)
class PackReport:
    """What a run found and did; as text, the summary that a person reads at the end."""

    shards_dir: Path
    shards: list[PackedShard]
    written: list[PackedShard]
    damaged: int
    left_out: dict[str, list[str]]
    seconds: float

    def __str__(self) -> str:
        lines = [self._deed(), *self._left_out(), f"next: {next_command(self.shards_dir)}"]
        return "\n".join(lines)

    def _deed(self) -> str:
        if not self.written:
            return f"nothing to do: {self.shards_dir} already holds all of it: {contents(self.shards)}"
        images = sum(shard.images for shard in self.written)
        deed = f"packed {contents(self.written)} in {self.seconds:.1f} s: {images / self.seconds:,.0f} images/s"
        if self.damaged:
            deed += f"\n{count_of(self.damaged, 'shard')} of the wrong size written again"
        if len(self.written) < len(self.shards):
            deed += f"\nwith those finished before: {contents(self.shards)}"
        return deed

    def _left_out(self) -> Iterator[str]:
        for reason, paths in sorted(self.left_out.items()):
            yield f"left out: {len(paths):,} {reason}, such as {min(paths)!r}"


def contents(shards: list[PackedShard], counted: bool = True) -> str:
    """What the shards hold, in words; `counted` says also in how many shards."""
    images, captions, metadata = (sum(column) for column in zip(*(shard[2:5] for shard in shards), strict=True))
    size = tqdm.format_sizeof(sum(shard.bytes for shard in shards), "B")
    where = f" in {count_of(len(shards), 'shard')}" if counted else ""
    return f"{count_of(images, 'image')}, {count_of(captions, 'caption')}, {metadata:,} json{where} ({size})"


def next_command(shards_dir: Path) -> str:
    """What to type to embed the shards, quoted for shell and Hydra."""
    path = str(shards_dir.absolute())
    if not re.fullmatch(r"[\w./-]+", path, re.ASCII):  # Hydra's own syntax wants quotes inside the shell's
        path = '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return command("embed", "data=shards", f"data.shards={path}", "model.adapter=ADAPTER", "output_dir=EMB")
