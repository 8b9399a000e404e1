"""An output directory for the length of a job: claimed, of one kind only, and gone again if nothing came of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lora_clip.errors import OutputError
from lora_clip.io.atomic import storage_error
from lora_clip.io.lock import FolderLock
from lora_clip.output import provenance
from lora_clip.output.ledger import prefix, prefix_length
from lora_clip.output.store import SUFFIXES, Store


class OutputSession:
    """The directory `root` as rank 0 holds it. With `resume` false what an earlier job left there is discarded.

    Nothing is created or deleted before `begin`, so that a mistake in the configuration leaves nothing behind.
    """

    def __init__(self, root: Path, resume: bool) -> None:
        self.root, self.resume = root, resume
        self.store = Store(root)
        self._lock: FolderLock | None = None
        self._created: list[Path] = []
        self._begun = False

    def __enter__(self) -> Self:
        """Claim the directory if it is there. Raises OutputError if another job has it, or something else is in it."""
        if self.root.exists():
            if not self.root.is_dir():
                raise OutputError(f"output_dir={self.root} is a file: give a folder")
            if (self.root / ".lock").exists():
                self._claim()
            self._refuse_untrusted()
        return self

    def _claim(self) -> None:
        self._lock = FolderLock(self.root)
        self._lock.claim()

    def _refuse_untrusted(self) -> None:
        occupied = [kind for kind in SUFFIXES if (self.root / kind).exists()]
        if occupied and provenance.read_fingerprint(self.root) is None:
            raise OutputError(
                f"{self.root} holds {', '.join(f'{kind}/' for kind in occupied)} that this program did not write: "
                "give another output_dir"
            )

    def check(self, fingerprint: provenance.Fingerprint) -> None:
        """Raises OutputError where the directory holds embeddings of another kind that are to be kept."""
        if self._continues():
            provenance.check_fingerprint(self.root, fingerprint)

    def known_inputs(self) -> list[dict[str, Any]]:
        """The input shards of earlier runs that are to be continued."""
        return provenance.read_inputs(self.root) if self._continues() else []

    def _continues(self) -> bool:
        """Whether something is there to go on from: a job that ended before its first commit binds no later one."""
        return self.resume and bool(self.store.ledger.ranges())

    def prefixes(self) -> dict[int, int]:
        """How many leading positions of each shard are committed and to be kept."""
        return (
            {shard: prefix_length(prefix(found)) for shard, found in self.store.committed().items()}
            if self.resume
            else {}
        )

    def begin(self, fingerprint: provenance.Fingerprint, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Create the directory where it is missing, and record what it will hold."""
        try:
            missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.root, error) from error
        if self._lock is None:
            self._claim()
        self._created, self._begun = missing, True  # not before the directory is ours: another job may have made it too
        if not self._continues():
            self.store.clear()
        provenance.write_fingerprint(self.root, fingerprint)
        provenance.write_inputs(self.root, inputs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the directory go; what a job leaves that failed before its first commit is removed."""
        if error is not None and self._begun and not self.store.ledger.ranges():
            self._leave_nothing()
        if self._lock is not None:
            self._lock.release()

    def _leave_nothing(self) -> None:
        if not self._created:
            self.store.clear()
            (self.root / ".lock").unlink(missing_ok=True)
            return
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in self._created[1:]:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
