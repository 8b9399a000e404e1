"""An output directory for the length of a job: claimed, of one kind only, and gone again if nothing came of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lora_clip.errors import OutputError
from lora_clip.io.atomic import storage_error
from lora_clip.io.lock import FolderLock, seconds_to_wait
from lora_clip.output import provenance
from lora_clip.output.housekeeping import assemble_finished, clear, recover
from lora_clip.output.layout import SUFFIXES
from lora_clip.output.ledger import CommittedRange
from lora_clip.output.manifest import read_manifest
from lora_clip.output.notes import RunNotes, add_notes, differences, read_notes
from lora_clip.output.share import Share
from lora_clip.output.sharing import SharedStore, finish_all, take_part
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.store import Store
from lora_clip.output.verify import Verdict, sample, verify


class OutputSession:
    """The directory `root` as rank 0 holds it. With `resume` false what an earlier job left there is discarded.

    Nothing is created or deleted before `begin`, so that a mistake in the configuration leaves nothing behind.
    What it holds (`snapshot`) is read once; again only after this process or another rank has changed it.

    With `share_seconds` jobs may hold it together: the first looks at what is there, as if it were alone, and says in
    `open_share` what is to be done; those that `joined` take that for granted. A silent one is given up after so long.
    """

    def __init__(self, root: Path, resume: bool, share_seconds: float | None = None) -> None:
        self.root, self.resume, self.share_seconds = root, resume, share_seconds
        self.share: Share | None = None
        self.joined = False
        self.store = Store(root)
        self.snapshot = Snapshot(self.store, (), {})
        self._proven: Mapping[int, CommittedRange] = {}
        self._lock: FolderLock | None = None
        self._created: list[Path] = []
        self._begun = False

    def __enter__(self) -> Self:
        """Claim the directory if it is there. Raises OutputError if another job has it, or something else is in it."""
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"output_dir={self.root} is a file: give a folder")
        self._refuse_untrusted()
        if self.share_seconds is not None:
            self._take_part(self.share_seconds)
        elif (self.root / ".lock").exists():
            self._claim()
        self.snapshot = self.store.snapshot()
        return self

    def _take_part(self, seconds: float) -> None:
        """Be the first of the jobs that share the directory, or join them."""
        made = self._make_root()
        self._lock = FolderLock(self.root)
        self.joined = take_part(self._lock, share := Share(self.root, seconds))
        if self.joined:
            self.share = share
            share.join()
        else:
            self._created = made

    def open_share(self, about: Mapping[str, Any]) -> Share:
        """Let other jobs take part from here on, in what `about` says."""
        assert self._lock is not None and self.share_seconds is not None
        self.share = Share(self.root, self.share_seconds)
        self.share.begin({**about, "seconds": self.share_seconds})
        self.share.join()
        self._lock.share()
        return self.share

    def finish_share(self, targets: Mapping[int, int]) -> None:
        """Wait until all that is shared is finished, whoever does it. Raises OutputError where nobody does."""
        if self.share is not None:
            store = SharedStore(self.root, self.share)
            finish_all(store, store.snapshot(), targets)

    def close_share(self) -> None:
        """Clear away what the jobs have told one another: the output stands as if one job had written it."""
        if self.share is not None:
            self.share.end()
            shutil.rmtree(self.store.parts, ignore_errors=True)

    def fetch_for_report(self) -> bool:
        """Whether all that a report is made of is at hand."""
        return True

    def publish(self) -> None:
        """Nothing: what was written is where it belongs."""

    def _claim(self) -> None:
        self._lock = FolderLock(self.root)
        self._lock.claim(patience=seconds_to_wait())

    def _refuse_untrusted(self) -> None:
        occupied = [kind for kind in SUFFIXES if (self.root / kind).exists()]
        if occupied and provenance.read_fingerprint(self.root) is None:
            raise OutputError(
                f"{self.root} holds {', '.join(f'{kind}/' for kind in occupied)} that this program did not write: "
                "give another output_dir"
            )

    def check(self, fingerprint: provenance.Fingerprint) -> None:
        """Raises OutputError where the directory holds embeddings of another kind that are to be kept."""
        if self.joined or self._continues():
            made_by = (read_manifest(self.root) or {}).get("model")
            provenance.check_fingerprint(self.root, fingerprint, made_by)

    def known_inputs(self) -> Iterable[dict[str, Any]]:
        """The input shards of earlier runs that are to be continued, with what those runs counted."""
        return self.store.inputs() if self.joined or self._begun or self._continues() else ()

    def rewrite_inputs(self, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Record the shards anew, now that all of them are counted."""
        provenance.write_inputs(self.root, inputs)

    def _continues(self) -> bool:
        """Whether something is there to go on from: a job that ended before its first commit binds no later one."""
        return self.resume and bool(self.snapshot.lines)

    def prefixes(self) -> dict[int, int]:
        """How many leading positions of each shard are committed and to be kept."""
        return self.snapshot.prefixes() if self.resume else {}

    def begin(self, fingerprint: provenance.Fingerprint, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Create the directory where it is missing, and record what it will hold."""
        if self._lock is None:
            made = self._make_root()
            self._claim()
            self._refuse_news()
            self._created = made  # not before the directory is ours: another job may have made it too
        self._begun = True
        self._start_from_what_is_there()
        provenance.write_fingerprint(self.root, fingerprint)
        provenance.write_inputs(self.root, inputs)

    def _make_root(self) -> list[Path]:
        """Make the directory; those that were missing, from it upwards."""
        try:
            missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.root, error) from error
        return missing

    def _refuse_news(self) -> None:
        """What was planned is void where another job came and went since."""
        if self.store.snapshot().lines != self.snapshot.lines:
            raise OutputError(f"another job has written to {self.root} meanwhile: type the same command again")

    def _start_from_what_is_there(self) -> None:
        if not self._continues():
            clear(self.store)
            self.snapshot = self.store.snapshot()
        elif read_manifest(self.root) is not None:
            # a manifest is written when all that is finished was checked, and withdrawn before more is committed
            self._proven = self.snapshot.finished

    def recover(self, targets: Mapping[int, int]) -> Snapshot:
        """Bring what an interrupted run left into order; what is committed then."""
        self.snapshot = recover(self.store, targets, self.snapshot)
        return self.snapshot

    def note(
        self, notes: RunNotes, proof: Mapping[str, Any] | None = None, decoding: Mapping[str, Any] | None = None
    ) -> str | None:
        """Record under which conditions this run embeds; a line for the user where rows of others are there."""
        line = differences(read_notes(self.root), notes)
        add_notes(self.root, notes, proof, decoding)
        return line

    def conclude(self, targets: Mapping[int, int], embedded: bool, full: bool = False) -> Verdict:
        """Finish shards that several ranks shared, and check the output; `embedded`: ranks have committed something.

        That all files are there with their sizes is checked, and a sample of what this run wrote is read again; with
        `full`, all that no earlier run's manifest vouches for.
        """
        if embedded:
            self.snapshot = self.store.snapshot()
        self.snapshot = assemble_finished(self.store, targets, self.snapshot)
        finished = self.snapshot.finished
        written = {shard: entry for shard, entry in finished.items() if self._proven.get(shard) != entry}
        read = written if full else sample(written)
        return verify(self.root, targets, self.snapshot, finished.keys() - read)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the directory go; what a job leaves that failed before its first commit is removed."""
        if self.share is not None:
            self.share.leave()
        if (
            error is not None
            and (self._begun or self._created)
            and self._is_alone()
            and not self.store.snapshot().lines
        ):
            self._leave_nothing()
        if self._lock is not None:
            self._lock.release()

    def _is_alone(self) -> bool:
        """Whether no other job has part in the directory; none can begin to, then."""
        return self.share is None or (self._lock is not None and self._lock.try_claim())

    def _leave_nothing(self) -> None:
        if not self._created:
            clear(self.store)
            (self.root / ".lock").unlink(missing_ok=True)
            return
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in self._created[1:]:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
