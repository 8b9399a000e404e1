"""Several adapters in one pass: every output is, byte for byte, the one that a run of its own makes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from helpers.images import jpeg, write_tar
from helpers.jobs import (
    Meeting,
    check_layout,
    everything,
    ledger,
    lora_clip,
    malformed,
    new_folder,
    nursery,
    snapshot,
    wait_for,
)
from helpers.models import save_adapter, save_base

NAMES = ("first", "second", "base")
BATCHES = ("data.batch_size=4", "data.num_workers=1", "model.dtype=float32")
IMAGES, BAD = 70, 6


@cache
def place() -> Path:
    """A base, two adapters, and two shards with some members that are no images."""
    folder = new_folder()
    base = save_base(folder / "model")
    for seed, name in enumerate(NAMES[:2]):
        save_adapter(folder / name, base, seed=seed)
    for number, more in enumerate(({}, malformed())):
        pictures = {f"{number}{at:03d}.jpg": jpeg(seed=100 * number + at) for at in range(IMAGES // 2)}
        write_tar(folder / "shards" / f"{number}.tar", pictures | {f"{name}.jpg": bad for name, bad in more.items()})
    return folder


def typed(*names: str, **more: object) -> list[str]:
    """What a user types for these adapters."""
    folder = place()
    adapters = ",".join("null" if name == "base" else str(folder / name) for name in names)
    line = ["data=shards", f"data.shards={folder / 'shards'}", f"model.base={folder / 'model'}"]
    return [*line, f"model.adapter=[{adapters}]", *BATCHES, *(f"{key}={value}" for key, value in more.items())]


@cache
def alone(name: str) -> Path:
    """The output of a run of its own."""
    output, adapter = new_folder() / "output", "null" if name == "base" else place() / name
    line = [word for word in typed(name) if not word.startswith("model.adapter=")]
    nursery().predict(*line, f"model.adapter={adapter}", f"output_dir={output}").expect(0)
    return output


def check_each(output: Path, *names: str) -> None:
    """Assert that each output is complete, and has the bytes of a run of its own."""
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name in names:
        check_layout(output / name, rows=IMAGES, rejects=BAD)
        assert snapshot(output / name) == snapshot(alone(name)), name
        names_of_files = (
            {file for file in everything(one) if "rank_" not in file} for one in (output / name, alone(name))
        )
        assert len({frozenset(found) for found in names_of_files}) == 1
        manifest = json.loads((output / name / "manifest.json").read_text())
        adapter = None if name == "base" else str(place() / name)
        assert manifest["model"]["adapter"] == adapter
        assert (proof := manifest["proof"])["cosine"] > 0.9999 and proof["images"] == 2
        assert proof["reference"] == ("base" if name == "base" else "unmerged")
        wanted = json.loads((alone(name) / "manifest.json").read_text())["fingerprint"]
        assert {key: one for key, one in manifest["fingerprint"].items() if key != "stages"} == wanted


def test_three_in_one_pass_are_three_runs() -> None:
    output = new_folder() / "output"
    outcome = nursery().predict(*typed(*NAMES), f"output_dir={output}").expect(0)
    check_each(output, *NAMES)
    assert len({tuple(snapshot(output / name).values()) for name in NAMES}) == len(NAMES)
    assert outcome.stdout.count("embedding") == 1 + len(NAMES) and outcome.stdout.count("images/s") == 1
    for name in NAMES:
        assert f"output:   {output / name}\n" in outcome.stdout
    again = nursery().predict(*typed(*NAMES), f"output_dir={output}").expect(0)
    assert again.stdout.startswith("nothing is missing")
    verified = lora_clip("verify", *sorted(output.iterdir()))
    assert verified.returncode == 0 and verified.stdout.count("sound: ") == len(NAMES), verified.stdout


def test_two_ranks_write_the_same_bytes() -> None:
    output = new_folder() / "output"
    nursery().predict(*typed(*NAMES), Meeting.TYPED, f"output_dir={output}", ranks=2, **Meeting(2).options).expect(0)
    check_each(output, *NAMES)
    assert all(set(ledger(output / name)) == {0, 1} for name in NAMES)


def test_an_adapter_is_added_later_without_touching_the_others() -> None:
    output = new_folder() / "output"
    nursery().predict(*typed("first", "base"), f"output_dir={output}").expect(0)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.name[0] != "."}
    outcome = nursery().predict(*typed(*NAMES), f"output_dir={output}").expect(0)
    assert outcome.stdout.splitlines()[1].endswith("nothing is missing")
    assert outcome.stdout.splitlines()[2].endswith(f"{IMAGES + BAD} images")
    kept = {path: path.stat().st_mtime_ns for path in before if path.name not in ("fingerprint.json", "inputs.jsonl")}
    assert kept == {path: time for path, time in before.items() if path in kept}
    check_each(output, *NAMES)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_kill_in_the_middle_of_unequal_outputs_is_harmless(ranks: int) -> None:
    output = new_folder() / "output"
    nursery().predict(*typed("second"), "data.limit=20", f"output_dir={output}").expect(0)
    job = nursery().start(*typed(*NAMES), f"output_dir={output}", ranks=ranks)
    written = [output / name / "ranks" for name in ("first", "base")]
    assert wait_for(lambda: any(any(folder.glob("*.jsonl")) for folder in written), pause=0.001), job.stderr
    job.kill()
    nursery().predict(*typed(*NAMES), f"output_dir={output}").expect(0)
    check_each(output, *NAMES)


def test_a_failure_before_the_first_commit_leaves_nothing() -> None:
    output = new_folder() / "output"
    outcome = nursery().predict(*typed("first", "base"), f"output_dir={output}", "max_reject_fraction=0")
    assert outcome.status != 0 and "images rejected" in outcome.stderr
    adapter = save_adapter(new_folder() / "unlike", save_base(new_folder() / "other", seed=9), seed=3)
    fresh = new_folder() / "output"
    line = [word for word in typed("base") if not word.startswith("model.adapter=")]
    outcome = nursery().predict(*line, f"model.adapter=[null,{adapter}]", f"output_dir={fresh}")
    assert outcome.status != 0 and not fresh.exists(), outcome.stderr
