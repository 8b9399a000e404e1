"""encoded, on_device: JPEGs that stay bytes until they are on the device, through a stand-in for its decoder."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.images import encode, jpeg, photo, png, write_tar
from helpers.loader import SPEC, modules, plan_of
from helpers.models import SPEC as CLIP_SPEC
from helpers.queues import alone
from helpers.stand_in import REFUSED, StandIn
from lora_clip.errors import ConfigError
from lora_clip.loading import dataset, encoded
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.dataset import Care, PixelDataset
from lora_clip.loading.encoded import DeviceDecoding, EncodedBatch
from lora_clip.loading.hands import Hands
from lora_clip.loading.ring import Ring
from lora_clip.loading.survive import Remains
from lora_clip.pixels import nvjpeg, on_device
from lora_clip.pixels.decode import GPU, TURNS, ImageError, decode, fit, prepare
from lora_clip.pixels.on_device import decode_each, fit_on_device, in_calls, suits_device
from lora_clip.sources.tar import TarSource
from lora_clip.types import PixelBatch, PreprocessSpec, WorkRange

CPU = torch.device("cpu")
FLIPPED = bytearray(jpeg(64, 48, 8))
FLIPPED[-200] ^= 0xFF
MEMBERS = {
    "00.jpg": jpeg(60, 40, 0),
    "01.png": png(30, 50, 1),
    "02.jpg": jpeg(64, 64, 2)[:-300],
    "03.jpg": jpeg(41, 33, 3) + REFUSED,
    "04.jpg": encode(photo(50, 50, 4), "JPEG", progressive=True),
    "05.jpg": encode(photo(50, 30, 5).convert("L"), "JPEG"),
    "06.jpg": encode(photo(50, 30, 6).convert("CMYK"), "JPEG"),
    "07.jpg": b"",
    "08.jpg": bytes(FLIPPED),
    "09.jpg": jpeg(3000, 1, 9),
    "10.jpg": jpeg(60, 40, 10),
}
"""Of each kind one: for the device, for the worker, refused by either or by both."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_tar(folder / "0.tar", MEMBERS)
    write_tar(folder / "1.tar", {f"{n:02d}.jpg": jpeg(40 + n, 40, n) for n in range(7)})
    return folder


def made(folder: Path, decoding: str, batch_size: int = 4) -> list[PixelBatch]:
    """The batches of one process without workers."""
    source = TarSource(str(folder))
    plan = plan_of(source, 0, batch_size)
    catalog = Catalog(source, plan.shards)
    return list(PixelDataset(source, SPEC, batch_size, catalog, [alone(plan)], None, decoding))


def decoding(decoder: StandIn | None = None, spec: PreprocessSpec = SPEC) -> DeviceDecoding:
    return DeviceDecoding(decoder or StandIn(), spec, 60)


def on_the_device(batches: Sequence[PixelBatch], decoder: StandIn | None = None) -> list[PixelBatch]:
    finish = decoding(decoder)
    return [finish(batch) for batch in batches if isinstance(batch, EncodedBatch)]


def assert_alike(found: Sequence[PixelBatch], expected: Sequence[PixelBatch]) -> None:
    """The same images in the same places, and pixels but for what rounding makes of them."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is PixelBatch and one.pixels_BCHW.shape == other.pixels_BCHW.shape
        told = [(each.rows, each.rejects, each.work, each.last, each.bytes) for each in (one, other)]
        assert told[0] == told[1]
        assert (one.pixels_BCHW.int() - other.pixels_BCHW.int()).abs().max() <= 2
        assert not one.pixels_BCHW[len(one.rows) :].any(), "padding is always the same"


# --- Batches -----------------------------------------------------------------------------------------------------


def test_a_row_or_a_reject_for_each_image_as_on_the_cpu(folder: Path) -> None:
    decoder, expected = StandIn(), made(folder, "exact")
    batches = made(folder, "gpu")
    assert_alike(on_the_device(batches, decoder), expected)
    taken = {batch.rows[one.place].key for batch in batches[:3] for one in batch.images}  # type: ignore[attr-defined]
    assert taken == {"00", "03", "05", "08", "09", "10"}, "the worker decodes what is not ordinary"
    assert decoder.decoded == 4 + 7, "03 and 08 are refused"
    assert [reject.key for batch in expected for reject in batch.rejects] == ["02", "07"]


def test_an_image_that_nobody_can_decode_gives_its_place_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused on the device, and then on the CPU: what a worker would have rejected is rejected."""
    expected = made(folder, "exact", 16)

    def refuses(data: bytes, *rest: Any) -> tuple[int, int]:
        if data.endswith(REFUSED):
            raise ImageError("as bad as it looks")
        return prepare(data, *rest)

    monkeypatch.setattr(encoded, "prepare", refuses)
    mixed, plain = on_the_device(made(folder, "gpu", 16))
    assert [row.key for row in mixed.rows] == [row.key for row in expected[0].rows if row.key != "03"]
    kept = [place for place, row in enumerate(expected[0].rows) if row.key != "03"]
    assert (mixed.pixels_BCHW[: len(kept)].int() - expected[0].pixels_BCHW[kept].int()).abs().max() <= 2
    assert not mixed.pixels_BCHW[len(kept) :].any()
    assert [(reject.key, reject.stage) for reject in mixed.rejects] == [
        ("02", "decode"), ("03", "decode"), ("07", "decode"),
    ]  # fmt: skip
    assert mixed.rejects[1].error == "as bad as it looks" and mixed.rejects[1].position == 3
    assert_alike([plain], expected[1:])


def test_a_batch_has_room_for_so_many_bytes_and_the_worker_decodes_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "BYTES_AN_IMAGE", len(MEMBERS["00.jpg"]) // 3)
    batches = [batch for batch in made(folder, "gpu", 8) if isinstance(batch, EncodedBatch)]
    assert 0 < sum(len(batch.images) for batch in batches) < 6 + 7
    assert all(batch.images[-1].stop <= len(batch.encoded) for batch in batches if batch.images)
    assert_alike(on_the_device(batches), made(folder, "exact", 8))


def test_bytes_do_not_depend_on_how_they_are_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = on_the_device(made(folder, "gpu", 8))
    monkeypatch.setattr(on_device.in_calls, "__defaults__", (1,))
    decoder = StandIn()
    single = on_the_device(made(folder, "gpu", 8), decoder)
    assert set(decoder.calls) == {1}
    assert all(torch.equal(one.pixels_BCHW, other.pixels_BCHW) for one, other in zip(whole, single, strict=True))


def test_what_a_worker_died_of_is_decoded_where_it_would_have_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed with an image in hand must not show in the bytes; CPU images are decoded apart then."""
    apart = []

    def prepare_apart(data: bytes, *rest: Any) -> tuple[int, int]:
        apart.append(data)
        return prepare(data, *rest[:3])

    monkeypatch.setattr(dataset, "prepare_apart", prepare_apart)
    monkeypatch.setattr(dataset, "get_worker_info", lambda: SimpleNamespace(id=0))
    remains = Remains(suspects=frozenset((0, position) for position in range(5)))
    source = TarSource(str(folder))
    plan = plan_of(source, 0, 16)
    catalog = Catalog(source, plan.shards)
    care = Care(Hands(1), remains, 60)
    batches = PixelDataset(source, SPEC, 16, catalog, [alone(plan)], None, "gpu", (), care)
    found, plain = on_the_device(list(batches)), on_the_device(made(folder, "gpu", 16))
    assert all(torch.equal(one.pixels_BCHW, other.pixels_BCHW) for one, other in zip(found, plain, strict=True))
    assert apart == [MEMBERS[name] for name in ("01.png", "02.jpg", "04.jpg")]


# --- Between processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_hand_bytes_over_and_get_their_buffers_back(folder: Path, workers: int) -> None:
    source = TarSource(str(folder))
    plan = plan_of(source, workers, 2)
    (module,) = modules(source, plan, workers, 2)
    module.decoding = "gpu"
    module.__dict__["device_decoding"] = decoding()
    # more batches than the ring has buffers for: it would hang where one were not released
    found = [module.on_after_batch_transfer(batch.to(CPU), 0) for batch in module.predict_dataloader()]
    found = sorted(
        (batch for batch in found), key=lambda batch: (batch.work, batch.rows[:1] != [], str(batch.rows[:1]))
    )
    expected = made(folder, "exact", 2)
    assert {row for batch in found for row in batch.rows} == {row for batch in expected for row in batch.rows}
    assert {one for batch in found for one in batch.rejects} == {one for batch in expected for one in batch.rejects}
    pixels = {batch.rows[0]: batch.pixels_BCHW for batch in found if batch.rows}
    for batch in expected:
        if batch.rows:
            assert (pixels[batch.rows[0]].int() - batch.pixels_BCHW.int()).abs().max() <= 2


def test_bytes_lie_in_the_ring_and_do_not_travel() -> None:
    ring = Ring(1, 1, (2, 3, 16, 16), 100_000)
    pixels_BCHW, slot = ring.take(0)
    batch = encoded.empty_batch(pixels_BCHW, WorkRange(0, 0, 2), slot)
    data = jpeg(200, 150)
    assert batch.take(data, SPEC) == (150, 200)
    message = pickle.dumps(batch)
    arrived = pickle.loads(message)
    assert len(message) < 1000 < len(data) and arrived.bytes_of(arrived.images[0]) == data
    assert arrived.pin_memory() is arrived and arrived.to(CPU) is arrived
    arrived.release()
    ring.take(0)


# --- The same pixels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("turn", TURNS)
def test_pixels_are_those_of_exact_but_for_rounding(turn: int, interpolation: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(photo(150, 100, turn), "JPEG", exif=exif)
    spec = replace(CLIP_SPEC, orientation="exif", interpolation=interpolation, resize=36)
    out_CHW, expected_CHW = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    prepare(data, spec, expected_CHW)
    fit_on_device(decode(data).permute(2, 0, 1), turn, spec, out_CHW)
    apart = (out_CHW.int() - expected_CHW.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.1


def test_a_query_to_such_an_output_is_decoded_as_for_exact() -> None:
    out_CHW, expected_CHW = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert prepare(jpeg(900, 700), CLIP_SPEC, out_CHW, GPU) == prepare(jpeg(900, 700), CLIP_SPEC, expected_CHW)
    assert torch.equal(out_CHW, expected_CHW)


@pytest.mark.parametrize(
    "changed",
    [{"resize": (20, 48)}, {"resize": None}, {"longest": True, "resize": 32}, {"centre": "round"}, {"resize": 12}],
    ids=str,
)
def test_every_kind_of_resize_and_crop_is_that_of_exact(changed: dict[str, Any]) -> None:
    spec = replace(CLIP_SPEC, **changed)
    pixels_HWC = decode(jpeg(75, 51, 4))
    out_CHW, expected_CHW = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    fit(pixels_HWC, spec, expected_CHW)
    fit_on_device(pixels_HWC.permute(2, 0, 1), 1, spec, out_CHW)
    assert (out_CHW.int() - expected_CHW.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "suits"),
    [(400, 600, True), (3000, 4000, True), (9000, 9000, False), (1, 60_000, False), (10, 30_000, False), (1, 1, True)],
)
def test_sizes_that_would_take_too_much_of_a_device_are_left_to_the_cpu(height: int, width: int, suits: bool) -> None:
    spec = replace(CLIP_SPEC, resize=224, crop=(224, 224))
    assert suits_device(height, width, spec) is suits
    assert not suits_device(height, width, replace(spec, interpolation="lanczos"))
    assert not suits_device(5000, 5000, CLIP_SPEC), "shrunk too far"


# --- Calls -------------------------------------------------------------------------------------------------------


def test_those_that_are_refused_are_found_by_halves() -> None:
    files = [jpeg(20, 20, n) + (REFUSED if n in (3, 11) else b"") for n in range(16)]
    decoder = StandIn()
    found = decode_each(decoder, [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in files])
    assert [number for number, one in enumerate(found) if one is None] == [3, 11]
    assert decoder.decoded == 14 and len(decoder.calls) < 16


def test_a_call_takes_so_many_pixels() -> None:
    assert in_calls([]) == []
    assert in_calls([5, 5, 5, 20, 1], most=10) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]


# --- Where it cannot be had --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "there", "interpolation", "said"),
    [
        ("cpu", True, "bicubic", "needs a CUDA GPU, and this job runs on the device cpu: data.decode=exact"),
        ("cuda", False, "bicubic", r"torchvision, which is not installed: type .*lora-clip\[gpu\].*data.decode=exact"),
        ("cuda", True, "lanczos", "images are resized by lanczos: data.decode=exact"),
    ],
)
def test_what_is_missing_is_told_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, device: str, there: bool, interpolation: str, said: str
) -> None:
    monkeypatch.setattr(nvjpeg, "installed", lambda name: there)
    with pytest.raises(ConfigError, match=said):
        nvjpeg.require_nvjpeg(torch.device(device), replace(SPEC, interpolation=interpolation))


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is installed was never imported, and what a test imports is forgotten after it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "nms does not exist"),
        ("", "cannot decode a JPEG on cuda"),
    ],
)
def test_a_torchvision_that_is_of_no_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    """One made for another torch fails as it is imported; one without a GPU when it is first asked."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(file)
    (tmp_path / "torchvision" / "io.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"{said}.*data.decode=exact"):
        nvjpeg.open_decoder(torch.device("cuda"))
