"""Progressive JPEGs without what a decode at a quarter of their size hardly shows, which is most of their bytes."""

from __future__ import annotations

import re

from lora_clip.pixels.jpeg import BASELINE, END, OTHER_FRAMES, SCAN, START

PROGRESSIVE = 0xC2
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the coefficients of a scan: in them a 0xff is followed by a zero, and a restart marker is part of them."""
LOWEST = 5
"""The last of a block's frequencies, along the zigzag, of which a decode at a quarter of the size shows much."""


def coarse(data: bytes) -> bytes:
    """A progressive JPEG without its scans of high frequencies, and without those that only refine the other ones.

    What is left is a JPEG by the standard (ITU-T T.81, G.1: how many scans there are is up to the encoder), and the
    mean of each block of it is exact. Any other file, and one without an end, stays as it is.
    """
    kept, at, progressive = [START], len(START), False
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != END[1]:
        marker, stop = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # any number of them may come before a marker
            at += 1
            continue
        if marker == BASELINE or marker in OTHER_FRAMES:
            progressive = marker == PROGRESSIVE
        if marker == SCAN:
            if not progressive or not (after := NEXT_MARKER.search(data, stop)):
                return data
            if not _is_fine(data[at + 4 : stop]):
                kept.append(data[at : after.start()])
            at = after.start()
        else:
            kept.append(data[at:stop])
            at = stop
    return b"".join([*kept, END]) if progressive and data[at : at + 2] == END else data


def _is_fine(scan: bytes) -> bool:
    """Whether a scan, by its header, holds high frequencies, or more bits of low ones; the mean is never left out."""
    first, _, bits = scan[-3:] if len(scan) > 3 else (0, 0, 0)
    return first > LOWEST or (first > 0 and bits >> 4 > 0)
