"""Progressive JPEGs without what a decode at a quarter of their size hardly shows, which is most of their bytes."""

from __future__ import annotations

import re

from lora_clip.pixels.jpeg import BASELINE, END, OTHER_FRAMES, SCAN, START, segments

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
    kept, at, frames = [START], len(START), set[int]()
    while data[at : at + len(END)] != END:
        head = [*segments(data, at)]
        frames.update(one.marker for one in head if one.marker == BASELINE or one.marker in OTHER_FRAMES)
        after = NEXT_MARKER.search(data, head[-1].stop) if head and head[-1].marker == SCAN else None
        if frames != {PROGRESSIVE} or after is None:
            return data
        scan = head[-1].content
        begins = head[-1].stop - len(scan) - 4
        kept.append(data[at : begins if _is_fine(scan) else after.start()])
        at = after.start()
    return b"".join([*kept, END])


def _is_fine(scan: bytes) -> bool:
    """Whether a scan, by its header, holds high frequencies, or more bits of low ones; the mean is never left out."""
    first, _, bits = scan[-3:] if len(scan) > 3 else (0, 0, 0)
    return first > LOWEST or (first > 0 and bits >> 4 > 0)
