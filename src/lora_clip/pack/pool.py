"""Shards written side by side by processes that end when they are told to, or when their parent does."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_clip.io import process
from lora_clip.pack.index import PackedShard, is_finished
from lora_clip.pack.listing import ListedFile
from lora_clip.pack.split import Assignment
from lora_clip.pack.write import write_shard
from lora_clip.sources.inventory import Note, note
from lora_clip.sources.names import image_name
from lora_clip.sources.tar import scan
from lora_clip.terminal import count_of


class _StoppedError(Exception):
    """The parent asked the workers to stop."""


def run_pool(images_dir: Path, shards_dir: Path, assignments: list[Assignment], workers: int) -> list[Note]:
    """Write the shards that are not there with so many processes, show how far they are, and note what is in each.

    Raises what a worker raised, BrokenProcessPool where one was killed, KeyboardInterrupt.
    """
    # Spawned, not forked: the caller may have threads, and a forked worker would hold the lock on SHARDS.
    context = multiprocessing.get_context("spawn")
    # Shared without locks: a worker that is killed while it holds one would leave all others waiting.
    stop, done = context.RawValue("b", 0), context.RawArray("q", len(assignments))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (stop, done))
    with interrupts_held() as held:
        try:
            futures = [pool.submit(_work, n, images_dir, shards_dir, *found) for n, found in enumerate(assignments)]
            _follow(futures, done, sum(shard.images for shard, _ in assignments), held)
            return [future.result() for future in futures]
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[set[signal.Signals]]:
    """Ctrl-C and SIGTERM, where they would interrupt, stay pending in here, in this process and in those it starts.

    An interrupt inside `concurrent.futures` can leave a lock behind that its own threads then wait for for ever; and a
    terminal sends Ctrl-C to the workers too, though the parent alone decides to stop.
    """
    held = {number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: list[Future[Note]], done: Iterable[int], total: int, held: set[signal.Signals]) -> None:
    title = count_of(len(futures), "shard")
    interval = 0.1 if sys.stderr.isatty() else 10  # a log file is no place for ten lines a second
    with tqdm(desc=title, total=total, unit=" images", mininterval=interval, dynamic_ncols=True) as bar:
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                if signal.sigpending() & held:
                    raise KeyboardInterrupt
                bar.update(sum(done) - bar.n)
                for future in finished:
                    future.result()
        except BaseException:
            bar.leave = False
            raise


_stop: Any
_done: Any


def _start_worker(stop: Any, done: Any) -> None:
    global _stop, _done
    _stop, _done = stop, done
    # With SIGTERM the pool ends the workers that are left when one of them was killed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    process.end_with_parent()


def _work(number: int, images_dir: Path, shards_dir: Path, shard: PackedShard, members: list[ListedFile]) -> Note:
    def after(member: ListedFile) -> None:
        if _stop.value:
            raise _StoppedError
        _done[number] += image_name(member.path) is not None

    target = shards_dir / shard.name
    if not is_finished(shards_dir, shard):
        write_shard(images_dir, target, members, after)
    _done[number] = shard.images
    return note(scan(number, str(target), None))
