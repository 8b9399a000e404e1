"""An output in a bucket as one of several jobs writes it: what is made in a local folder is put there as objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lora_clip.errors import OutputError
from lora_clip.io.addresses import redacted
from lora_clip.io.objects import Objects
from lora_clip.output.eras import Era, said
from lora_clip.output.layout import SUFFIXES, range_name
from lora_clip.output.ledger import CommittedRange, Ledger, line_of, parse, work_of
from lora_clip.output.share import FINISHED, Share
from lora_clip.output.sharing import DoneByAnotherError, SharedStore
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.store import Write, WrittenRange


class BucketLedger(Ledger):
    """The lines in a bucket: of eras that are over, and of the one that is under way. An object is read once."""

    def __init__(self, folder: Path, objects: Objects, id_: str) -> None:
        super().__init__(folder)
        self.objects, self.id = objects, id_
        self._known: dict[str, bytes] = {}

    def ranges(self) -> list[CommittedRange]:
        """All committed ranges, in no particular order."""
        self._known |= said(self.objects, self.id, self._known)  # what goes there stands in ranks/ by then
        names = [f"ranks/{name}" for name in self.objects.listed("ranks")]
        self._known |= self.objects.read_all(name for name in names if name not in self._known)
        self._parsed = {Path(name): parse(text) for name, text in self._known.items()}
        return [entry for parsed in self._parsed.values() for entry in parsed.ranges]

    def write_down(self) -> None:
        """Leave the lines in the local folder too, for those who read a local output."""
        self.folder.mkdir(exist_ok=True)
        lines = [json.dumps(line_of(entry)) for parsed in self._parsed.values() for entry in parsed.ranges]
        (self.folder / "rank_00000.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def forget(self) -> None:
        """Read everything anew the next time."""
        self._known.clear()
        super().forget()


class BucketSnapshot(Snapshot):
    """The same of a bucket; a file is fetched when it is asked for."""

    def locate(self, kind: str, entry: CommittedRange) -> Path:
        """Where a copy of a committed range's file is."""
        assert isinstance(self.layout, BucketStore)
        return self.layout.fetch("/".join(self.place(kind, entry)))


class BucketStore(SharedStore):
    """An output in a bucket as one of the jobs of an era writes it, by way of files in `root` that go then."""

    def __init__(self, root: Path, share: Share) -> None:
        super().__init__(root, share)
        assert isinstance(share.board, Era)
        self.era, self.objects = share.board, share.board.objects
        self.ledger: BucketLedger = BucketLedger(root / "ranks", self.objects, self.era.id)

    def tag(self) -> str:
        """Another one each time, in all eras."""
        return f"{self.era.id}-{super().tag()}"

    def snapshot(self) -> Snapshot:
        """What is committed, and there, now."""
        lines = self.ledger.ranges()
        files = {name: self.objects.listed(name) for name in (*SUFFIXES, "parts")}
        return BucketSnapshot(self, lines, files)

    def fetch(self, name: str) -> Path:
        """A local copy of an object. Raises FileNotFoundError."""
        path = self.root / name
        if not path.exists():
            if (data := self.objects.read(name)) is None:
                raise FileNotFoundError(f"{redacted(self.objects.address)}/{name} is gone")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return path

    def _commit_files(self, targets: Mapping[str, Path], writers: Mapping[str, Write]) -> WrittenRange:
        written = super()._commit_files(targets, writers)
        for target in targets.values():
            self._make(target)
        return written

    def _make(self, path: Path) -> None:
        name = str(path.relative_to(self.root))
        if not self.objects.make(name, path.read_bytes()):
            raise OutputError(
                f"{redacted(self.objects.address)}/{name} is there already, with other bytes: a job that was given up "
                "went on. Type the same command again when all jobs have ended"
            )
        path.unlink()

    def note_counted(self, rank: int, shard: Mapping[str, object]) -> None:
        """Nothing: `count` says it, and stands in the ledger with the shard's line."""

    def _tell(self, rank: int, entry: CommittedRange) -> None:
        if entry.final:
            counted = self.share.counted(entry.shard)
            lines = [] if counted is None else [{"counted": counted}]
            text = "\n".join(json.dumps(line) for line in [*lines, line_of(entry)])
            self.era.make(f"{entry.shard:06d}{FINISHED}", text.encode())
        elif not self.share.commit(entry):
            self._remove([entry])
            raise DoneByAnotherError

    def _drop(self, ranges: Iterable[CommittedRange]) -> None:
        ranges = list(ranges)
        super()._drop(ranges)
        if not self.era.is_over:  # a new era may have begun, and need them still
            self._remove(ranges)

    def _remove(self, ranges: Sequence[CommittedRange]) -> None:
        self.objects.remove(
            f"parts/{range_name(kind, work_of(entry), entry.tag)}" for entry in ranges for kind in entry.checksums
        )


def store_of(root: Path, share: Share) -> SharedStore:
    """The store of those who share an output, wherever it is."""
    return BucketStore(root, share) if isinstance(share.board, Era) else SharedStore(root, share)
