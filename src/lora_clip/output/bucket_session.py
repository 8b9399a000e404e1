"""An output in a bucket for the length of a job: taken part in by eras, brought into order by the first of each."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lora_clip.errors import LoraClipError, OutputError
from lora_clip.io.addresses import redacted
from lora_clip.io.objects import Objects
from lora_clip.output import provenance
from lora_clip.output.board import FOLDER
from lora_clip.output.bucketed import BucketStore
from lora_clip.output.eras import Era, sweep, take_part
from lora_clip.output.housekeeping import FILES, FOLDERS, OUTDATED, orphans
from lora_clip.output.layout import COMMIT_ORDER, SUFFIXES, file_name, range_name
from lora_clip.output.ledger import CommittedRange, covers, work_of
from lora_clip.output.notes import RunNotes
from lora_clip.output.session import OutputSession
from lora_clip.output.share import Share, keep_beating
from lora_clip.output.sharing import finish_all
from lora_clip.output.snapshot import Snapshot

SMALL = ("fingerprint.json", "inputs.jsonl", "runs.jsonl", "manifest.json", "report.html")
REPORT_BYTES = 1 << 30
"""Of a larger output no report is made: it takes a copy of all of it."""


class BucketSession(OutputSession):
    """The output at `address`, by way of files in the empty folder `root`, as rank 0 holds it."""

    store: BucketStore

    def __init__(self, root: Path, address: str, resume: bool, share_seconds: float) -> None:
        super().__init__(root, resume, share_seconds)
        self.objects = Objects(address)
        self._left: threading.Event | None = None

    def __enter__(self) -> Self:
        """Join the jobs that are at work there, or be the first. Raises OutputError, StorageError or ConfigError."""
        assert self.share_seconds is not None
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(mode=0o700)
        (self.root / FOLDER).mkdir()  # for the figures of this job
        self._refuse_untrusted()
        self.objects.require_make()
        self.share, self.joined = take_part(self.root, self.objects, self.share_seconds)
        self._left = keep_beating(self.share)
        try:
            self._look()
        except BaseException as error:
            self._leave()
            self._say(error)
            raise
        return self

    def _look(self) -> None:
        assert self.share is not None
        if not self.joined:
            sweep(self.objects, self._era)
        for name in SMALL:
            self._pull(name)
        self.store = BucketStore(self.root, self.share)
        self.snapshot = self.store.snapshot()

    @property
    def _era(self) -> Era:
        assert self.share is not None and isinstance(self.share.board, Era)
        return self.share.board

    def _pull(self, name: str) -> None:
        if (data := self.objects.read(name)) is not None:
            (self.root / name).write_bytes(data)

    def _push(self, *names: str) -> None:
        self._stand_by()
        for name in names:
            self.objects.put(name, (self.root / name).read_bytes())

    def _remove(self, names: Iterable[str]) -> None:
        self._stand_by()
        self.objects.remove(names)

    def _stand_by(self) -> None:
        """Raises OutputError where others took this job for dead: what it would put or remove is theirs."""
        if self._era.is_over:
            raise OutputError(
                f"other jobs have gone on in {redacted(self.objects.address)} while this one stood still: "
                "type the same command again"
            )

    def _refuse_untrusted(self) -> None:
        if self.objects.read("fingerprint.json") is None:
            occupied = [f"{kind}/" for kind in SUFFIXES if self.objects.listed(kind)]
            if occupied:
                raise OutputError(
                    f"{redacted(self.objects.address)} holds {', '.join(occupied)} that this program did not write: "
                    "give another output_dir"
                )

    def open_share(self, about: Mapping[str, Any]) -> Share:
        """Let other jobs take part from here on, in what `about` says."""
        self._stand_by()
        assert self.share is not None
        self.share.begin({**about, "seconds": self.share_seconds})
        return self.share

    def finish_share(self, targets: Mapping[int, int]) -> None:
        """Wait until all that is shared is finished, whoever does it. Raises OutputError where nobody does."""
        own = provenance.require_fingerprint(self.root)
        finish_all(self.store, self.store.snapshot(), targets)
        self._pull("fingerprint.json")
        provenance.check_fingerprint(self.root, own)  # while this job stood still another may have begun anew

    def rewrite_inputs(self, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Record the shards anew, now that all of them are counted."""
        super().rewrite_inputs(inputs)
        if self._era.is_over:
            return
        self.objects.put(provenance.INPUTS, (self.root / provenance.INPUTS).read_bytes())

    def begin(self, fingerprint: provenance.Fingerprint, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Record what the output will hold."""
        self._begun = True
        if not self._continues():
            self._clear()
        elif (self.root / "manifest.json").exists():
            self._proven = self.snapshot.finished
        provenance.write_fingerprint(self.root, fingerprint)
        provenance.write_inputs(self.root, inputs)
        self._push("fingerprint.json", provenance.INPUTS)

    def _clear(self) -> None:
        below = [name for folder in FOLDERS if folder != FOLDER for name in self.objects.below(folder)]
        self._remove([*(name for name in FILES if self.objects.time(name) is not None), *below])
        for name in SMALL:
            (self.root / name).unlink(missing_ok=True)
        self.store.ledger.forget()
        self.snapshot = self.store.snapshot()

    def recover(self, targets: Mapping[int, int]) -> Snapshot:
        """Bring what an interrupted run left into order; what is committed then."""
        ranges = self.snapshot.committed
        if any(not covers(ranges.get(shard, []), target) for shard, target in targets.items()):
            self._remove(OUTDATED)
            for name in OUTDATED:
                (self.root / name).unlink(missing_ok=True)
            self._remove(self.objects.below("timeline"))
        for shard, found in ranges.items():
            if found[0].final and found[0].stop < targets.get(shard, 0):
                self._reopen(found[0])
        self.snapshot = self.store.snapshot()
        self._remove([str(path.relative_to(self.root)) for path in orphans(self.snapshot)])
        self.snapshot = self.store.snapshot()
        return self.snapshot

    def _reopen(self, entry: CommittedRange) -> None:
        """Let a finished shard be a range again: copies first, then what a reader sees goes."""
        kinds = sorted(entry.checksums, key=COMMIT_ORDER.index, reverse=True)
        for kind in kinds:
            path = self.snapshot.locate(kind, entry)
            self.objects.put(f"parts/{range_name(kind, work_of(entry))}", path.read_bytes())
            path.unlink()
        self._remove(f"{kind}/{file_name(kind, entry.shard)}" for kind in kinds)

    def note(self, notes: RunNotes, *found: Mapping[str, Any] | None, **named: Mapping[str, Any] | None) -> str | None:
        """Record under which conditions this run embeds; two that do so in one moment may leave one line."""
        self._pull("runs.jsonl")
        line = super().note(notes, *found, **named)
        self._push("runs.jsonl")
        return line

    def fetch_for_report(self) -> bool:
        """Have a copy of what a report is made of; False where that is too much."""
        finished = [(kind, entry) for entry in self.snapshot.finished.values() for kind in entry.checksums]
        if sum(self.snapshot.size(kind, entry) for kind, entry in finished) > REPORT_BYTES:
            return False
        for kind, entry in finished:
            self.snapshot.locate(kind, entry)
        self.store.ledger.write_down()
        return True

    def publish(self) -> None:
        """Put what was made in the folder, the manifest last; nothing where others have done so, and all is ended."""
        if self._era.is_over:
            return
        lines = [f"timeline/{path.name}" for path in (self.root / "timeline").glob("*")]
        for name in [name for name in (*lines, "report.html", "manifest.json") if (self.root / name).exists()]:
            self.objects.put(name, (self.root / name).read_bytes())

    def close_share(self) -> None:
        """Say that all is done, and clear away what no reader needs."""
        if not self._era.is_over:
            self._era.end()
            self.objects.remove(self.objects.below("parts"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others know that this job has left; what went wrong is told of the address."""
        failed = error is not None and self._begun and not self._era.is_over
        if failed and self._era.read("share.json") is None and not self.store.snapshot().lines:
            self._clear()
        self._leave()
        self._say(error)

    def _say(self, error: BaseException | None) -> None:
        """Raises an error that names the local folder anew, with the address in its place."""
        if isinstance(error, LoraClipError) and str(self.root) in str(error):
            said = str(error).replace(str(self.root), redacted(self.objects.address))
            raise type(error)(said) from error

    def _leave(self) -> None:
        assert self.share is not None and self._left is not None
        self._left.set()
        self.share.leave()
        shutil.rmtree(self.root, ignore_errors=True)
