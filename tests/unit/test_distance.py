"""What decoding on the device changes: measured on images of the user's own, by the network that runs, and kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from helpers.images import jpeg, png, write_tar
from helpers.models import SPEC, random_pixels, save_base
from lora_clip.diagnose.summary import distance_line
from lora_clip.loading.first import first_encoded, first_images
from lora_clip.loading.plan import make_plan, take_inventory
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.distance import Distance, distance
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.output.notes import RunNotes, add_notes, farthest_decoding
from lora_clip.sources.tar import TarSource


def test_pixels_and_embeddings_that_differ_are_told_apart(tmp_path: Path) -> None:
    compute = Compute(batch_size=4)
    embedder = MergedEmbedder(find_checkpoint(str(save_base(tmp_path / "base")), None), compute)
    exact_NCHW, encoder = random_pixels(17, seed=3) // 2, embedder.images.encoder
    same = distance(encoder, compute, exact_NCHW, exact_NCHW.clone())
    assert (same.images, same.mean, same.most) == (17, 0, 0) and same.cosine > 0.999999
    other_NCHW = exact_NCHW.clone()
    other_NCHW[3] += 40
    found = distance(encoder, compute, exact_NCHW, other_NCHW)
    assert found.most == 40 and found.mean == pytest.approx(40 / 17)
    assert found.cosine < 0.9999 and found.centred is not None and found.centred < found.cosine
    assert distance(encoder, compute, exact_NCHW[:5], other_NCHW[:5]).centred is None


def test_the_line_says_what_the_manifest_has() -> None:
    line = distance_line("fashion", Distance(16, 0.734, 61, 0.99991, 0.9987))
    assert line == (
        "data.decode=gpu of fashion on 16 images of yours: pixels 0.73 of 255 from those of exact, 61 at most; "
        "cosine between the embeddings at least 0.999910, centred 0.998700"
    )


def test_the_farthest_of_all_runs_is_kept(tmp_path: Path) -> None:
    notes = RunNotes("cpu", False, 1, 4)
    add_notes(tmp_path, notes, {"images": 2})
    assert farthest_decoding(tmp_path) is None
    for found in (Distance(16, 0.5, 9, 0.9997, 0.9990), Distance(20, 0.4, 12, 0.9999, None)):
        add_notes(tmp_path, notes, None, asdict(found))
    assert farthest_decoding(tmp_path) == asdict(Distance(20, 0.5, 12, 0.9997, 0.9990))


def test_the_first_jpegs_come_decoded_and_as_they_are(tmp_path: Path) -> None:
    files = {f"{number:03d}.jpg": jpeg(40 + number, 50, number) for number in range(9)}
    others = {"0005.png": png(), "0006.jpg": jpeg()[:-40], "0007.jpg": b""}
    write_tar(tmp_path / "0.tar", dict(sorted((files | others).items())))
    source = TarSource(str(tmp_path), None)
    plan = make_plan(take_inventory(source), {}, ranks=1, workers=2, batch_size=4)
    pixels_NCHW, encoded, images = first_encoded(source, SPEC, plan, 16, 60)
    found = [encoded[one.start : one.stop].numpy().tobytes() for one in images]
    assert found == list(files.values()) and [one.place for one in images] == list(range(9))
    all_NCHW = first_images(source, SPEC, plan, 16, "exact", 60)
    assert all((all_NCHW == pixels_CHW).flatten(1).all(dim=1).sum() == 1 for pixels_CHW in pixels_NCHW)
    assert len(first_encoded(source, SPEC, plan, 4, 60)[2]) == 1, "of the first four, three are no JPEGs"
    assert torch.equal(first_encoded(source, SPEC, plan, 4, 60)[0][0], pixels_NCHW[0])
