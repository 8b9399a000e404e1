"""What an output says of itself: its kind, its format, and how its runs differed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_clip.errors import OutputError
from lora_clip.output import provenance
from lora_clip.output.layout import FORMAT
from lora_clip.output.manifest import read_manifest, upgrade_manifest, write_manifest
from lora_clip.output.notes import RunNotes, add_notes, differences, read_notes, take_notes
from lora_clip.output.session import OutputSession

KIND = {"adapter": {"weights": "a"}, "model_dtype": "float32"}


def test_a_fingerprint_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    provenance.write_fingerprint(tmp_path, KIND)
    provenance.check_fingerprint(tmp_path, KIND)
    with pytest.raises(OutputError, match=r"adapter.weights: a there, b wanted"):
        provenance.check_fingerprint(tmp_path, {**KIND, "adapter": {"weights": "b"}})
    write_manifest(tmp_path, {"format": FORMAT, "model": {"base": "/m/base", "adapter": "/m/step-1000"}})
    session = OutputSession(tmp_path, resume=True)
    session.joined = True  # what is there is to be kept
    with pytest.raises(OutputError, match=r"there: model.base=/m/base model.adapter=/m/step-1000"):
        session.check({**KIND, "adapter": {"weights": "b"}})


def test_a_folder_without_output_is_told_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no fingerprint.json\): give the output_dir of a job"):
        provenance.require_fingerprint(tmp_path)
    provenance.write_fingerprint(tmp_path, KIND)
    assert provenance.require_fingerprint(tmp_path) == KIND


# --- The format ----------------------------------------------------------------------------------------------------


def test_the_first_format_is_read_and_brought_to_the_present_one(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text(json.dumps(KIND))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "lora_clip 1", "rows": 3}))
    provenance.check_fingerprint(tmp_path, KIND)
    assert read_manifest(tmp_path) == {"format": "lora_clip 1", "rows": 3}
    upgrade_manifest(tmp_path)
    assert read_manifest(tmp_path) == {"format": FORMAT, "rows": 3}


@pytest.mark.parametrize("name", ["fingerprint.json", "manifest.json"])
def test_a_newer_format_is_refused_with_what_to_type(name: str, tmp_path: Path) -> None:
    provenance.write_fingerprint(tmp_path, KIND)
    write_manifest(tmp_path, {"format": FORMAT})
    record = json.loads((tmp_path / name).read_text())
    assert record["format"] == FORMAT
    (tmp_path / name).write_text(json.dumps({**record, "format": "lora_clip 99"}))
    with pytest.raises(OutputError, match=r"lora_clip 99(.|\n)*pip install --upgrade lora-clip"):
        provenance.read_fingerprint(tmp_path)
        read_manifest(tmp_path)


def test_a_newer_format_is_not_discarded_either(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text(json.dumps({**KIND, "format": "lora_clip 99"}))
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(OutputError, match="upgrade"), OutputSession(tmp_path, resume=False):
        pass
    assert (tmp_path / "img_emb").exists()


# --- Notes ---------------------------------------------------------------------------------------------------------

NOTES = RunNotes("cpu AVX2", False, 2, 64)


def test_notes_are_kept_a_line_a_run(tmp_path: Path) -> None:
    assert read_notes(tmp_path) == []
    others = replace(NOTES, batch_size=32)
    add_notes(tmp_path, NOTES)
    add_notes(tmp_path, others)
    assert read_notes(tmp_path) == [NOTES, others]
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"device": "cp')
    assert read_notes(tmp_path) == [NOTES, others]


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    assert differences([], NOTES) is None and differences([NOTES], NOTES) is None
    line = differences([NOTES, replace(NOTES, device="NVIDIA H100", threads=None)], replace(NOTES, batch_size=32))
    assert line is not None and "last bits" in line and "compile" not in line and "threads" not in line
    assert "batch_size 64 (now 32)" in line and "device NVIDIA H100 (now cpu AVX2)" in line


def test_the_conditions_of_this_process() -> None:
    notes = take_notes(torch.device("cpu"), True, 8)
    assert notes.device.startswith("cpu ") and notes.threads == torch.get_num_threads()
    assert (notes.compile, notes.batch_size) == (True, 8)


def test_a_session_notes_and_tells_and_a_fresh_start_forgets(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    add_notes(tmp_path / "o", NOTES)
    with OutputSession(tmp_path / "o", resume=True) as session:
        assert session.note(NOTES) is None
        line = session.note(replace(NOTES, compile=True))
        assert line is not None and "compile False (now True)" in line
    with OutputSession(tmp_path / "o", resume=False) as session:
        session.begin(KIND, [])
        assert session.note(replace(NOTES, threads=1)) is None
