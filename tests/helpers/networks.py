"""Two nodes on one machine: network namespaces that see one another over a cable, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = "cable"
NEEDED = ("ip", "unshare", "nsenter", "mount")


class NotHereError(Exception):
    """Namespaces cannot be made here: no root, no such programs, or a kernel without them."""


@contextmanager
def two_nodes() -> Iterator[list[list[str]]]:
    """For each node, what to type before a command so that it runs there; gone with the processes that hold them.

    Raises NotHereError.
    """
    if not all(map(shutil.which, NEEDED)):
        raise NotHereError
    line = ["unshare", "--net", "sh", "-c", "echo here; read forever"]
    holders = [subprocess.Popen(line, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) for _ in ADDRESSES]
    try:
        for holder in holders:
            if holder.stdout is None or holder.stdout.readline() != "here\n":
                raise NotHereError
        entries = [["nsenter", "--net", f"--target={holder.pid}"] for holder in holders]
        _connect(entries, [holder.pid for holder in holders])
        yield entries
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _connect(entries: Sequence[Sequence[str]], pids: Sequence[int]) -> None:
    one, other = (["name", CABLE, "netns", str(pid)] for pid in pids)
    lines = [["ip", "link", "add", *one, "type", "veth", "peer", *other]]
    for entry, address in zip(entries, ADDRESSES, strict=True):
        lines += [[*entry, "ip", "address", "add", f"{address}/24", "dev", CABLE]]
        lines += [[*entry, "ip", "link", "set", name, "up"] for name in ("lo", CABLE)]
    for line in lines:
        if subprocess.run(line, capture_output=True, check=False).returncode:
            raise NotHereError
