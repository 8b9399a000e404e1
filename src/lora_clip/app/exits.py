"""From the command line to the job: what a user can get wrong becomes one message and an exit status.

Exit status: 0 done; 1 an error of ours; 2 something to correct; 12 out of memory; 130 Ctrl-C; 143 SIGTERM;
141 nobody reads what is printed any more, as in `| head`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from lora_clip.app.mistakes import check_arguments, configuration_message, with_own_model
from lora_clip.app.outputs import find_outputs
from lora_clip.app.usage import help_text
from lora_clip.config import check, register
from lora_clip.errors import DataError, LoraClipError, PeerError, StorageError, TooManyRejectsError
from lora_clip.extras import SEARCH, require
from lora_clip.io.addresses import redacted_text
from lora_clip.io.process import end_with_parent, resume_collection
from lora_clip.models.digests import begin_digests

if TYPE_CHECKING:
    from omegaconf import DictConfig

USER_ERROR, OUT_OF_MEMORY, INTERRUPTED, PIPE_CLOSED, TERMINATED = 2, 12, 130, 141, 143
EACH_RANKS_OWN = (StorageError, DataError, PeerError, TooManyRejectsError)
"""Errors that may come to one rank alone, and so are said by that rank."""
SECONDS_FOR_RANK_0 = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM; a KeyboardInterrupt, because that is the interruption that Lightning unwinds from."""


def main(predict: Callable[[], Any], program: str = "lora-clip embed") -> NoReturn:
    """Run the Hydra entry and exit with its status; `program` is what was typed for it."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(program), end="")
        sys.exit(0)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the message is ours
    # Threads that spin while they wait take cores from decoding and from other programs: the demo job on two busy cores
    # took 9.8 s with this and 12.0 s without (medians of nine pairs; CPU time 7.6 and 10.2 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGTERM, on_sigterm)
    sys.unraisablehook = on_unraisable
    if "LOCAL_RANK" in os.environ:
        end_with_parent()  # a rank whose launcher was killed must not go on writing
    register()
    with guard():
        if not _is_child():
            check_arguments(sys.argv[1:])
        sys.argv[1:] = with_own_model(sys.argv[1:])
        predict()
    _leave(0)


def run_job(config: DictConfig) -> None:
    """Run the job that the configuration describes; what is wrong in it is said before anything heavy is imported."""
    with guard():
        check(config)
        if config.index:
            require(SEARCH, "faiss")
        outputs = find_outputs(config)
        if _rank() == "0":
            begin_digests(output.checkpoint for output in outputs)
        from lora_clip.app.job import run

        resume_collection()
        run(config, outputs)


LOST_PEER = ("DistNetworkError", "DistStoreError", "DistBackendError")


@contextmanager
def guard() -> Iterator[None]:
    """Turn an error into its message and the process's exit; inside Hydra, before Hydra adds words of its own."""
    try:
        yield
    except BaseException as error:
        _end(error)


def _end(error: BaseException) -> NoReturn:
    _leave(_report(error))


def give_up(error: PeerError) -> NoReturn:
    """End the process, from whichever thread: its main thread may wait for ever for the rank that is lost."""
    _end(error)


def _leave(status: int) -> NoReturn:
    """Exit at once: what Python would do at its end (joining workers, say) may fail in its turn, and say so.

    And it takes a second to take millions of objects apart one by one.
    """
    _kill_workers()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Exit as a shell expects of a program whose standard output was closed, without a word: `| head` has enough."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        failed = isinstance(error, SystemExit) and error.code  # it has said more than that nobody reads
        if failed or not _is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        sys.exit(PIPE_CLOSED)


def _is_closed() -> bool:
    """Whether what was printed cannot be written any more, and standard output is what is broken."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except OSError:
        return False


def on_unraisable(unraisable: Any) -> None:
    """What a destructor raised: a signal that came in the middle of one must not be lost, the rest helps nobody."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _end(unraisable.exc_value)


def _kill_workers() -> None:
    """End the data workers before they can complain that this process is gone."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    """Unwind as from Ctrl-C."""
    raise Terminated


def _rank() -> str:
    """The rank of this process, as far as it is known before the Trainer is there."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK", "0")


def _is_child() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _report(error: BaseException) -> int:
    """Print what a user should know of the error; returns the exit status."""
    if interruption := _interruption(error):
        word, status = interruption
        return _say(f"{word}: what is committed is safe; the same command goes on from there", status)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, LoraClipError):
        return _say(f"error: {_own_words(error)}", USER_ERROR, everywhere=isinstance(error, EACH_RANKS_OWN))
    if _is_lost_peer(error):
        return _say("error: another rank has ended, and said why. The same command goes on from there", USER_ERROR)
    if (message := configuration_message(error)) is not None:
        return _say(f"error: {message}", USER_ERROR)
    if is_out_of_memory(error):
        return _say(f"error: out of memory: {_own_words(error)}. Try a smaller data.batch_size", OUT_OF_MEMORY, True)
    if "DataLoader worker" in str(error) and "Original Traceback" not in str(error):
        advice = "it may have run out of memory or been killed; fewer data.num_workers need less"
        return _say(f"error: {_own_words(error)} ({advice}). The same command goes on from there", USER_ERROR, True)
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _is_lost_peer(error: BaseException) -> bool:
    """Whether another rank is gone: gloo and the store of the process group have no one way to say so."""
    said = any(words in str(error) for words in ("closed by peer", "reset by peer", "Connection refused"))
    return type(error).__name__ in LOST_PEER or (said and ("gloo" in str(error).lower() or "peer" in str(error)))


def _interruption(error: BaseException) -> tuple[str, int] | None:
    names = _chain(error)
    if "Terminated" in names:
        return "terminated", TERMINATED
    return ("interrupted", INTERRUPTED) if "KeyboardInterrupt" in names else None


def _chain(error: BaseException) -> list[str]:
    names = []
    cause: BaseException | None = error
    while cause is not None:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return names


def _say(message: str, status: int, everywhere: bool = False) -> int:
    message = redacted_text(message)
    if (rank := _rank()) == "0" or everywhere:
        print(f"[rank {rank}] {message}" if rank != "0" else message, file=sys.stderr, flush=True)
    elif status == USER_ERROR:
        _wait_to_be_ended(status)
    return status


def _wait_to_be_ended(status: int) -> None:
    """Rank 0 says the same, and is to say it before the launcher sees that this rank has ended, and ends them all."""
    _kill_workers()
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(status))
    time.sleep(SECONDS_FOR_RANK_0)


def _own_words(error: BaseException) -> str:
    """An error's message; of one that a data worker raised, which comes with a traceback in its text, the last line."""
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:
        return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1]).rstrip(".")
    return text if isinstance(error, LoraClipError) else text.splitlines()[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device's, the machine's or the shared memory is used up."""
    text = str(error)
    signs = ("can't allocate memory", "out of memory", "Bus error", "Cannot allocate memory", "unable to allocate")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
