"""The manifest: what it says of an output holds wherever it is read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_clip.models.checkpoint import Checkpoint
from lora_clip.output.manifest import build_manifest
from lora_clip.output.verify import Verdict


@pytest.mark.parametrize("adapter", ["lora", {"lora": 0.7, "somebody/lora": 0.3}, None])
def test_a_model_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str | dict[str, float] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    here = str(tmp_path / "lora")
    model = build_manifest({}, Checkpoint("somebody/clip", tmp_path, adapter, None), Verdict(), {}, None)["model"]
    assert model["base"] == "somebody/clip", "a name of the hub stays what it is"
    assert model["adapter"] == ({here: 0.7, "somebody/lora": 0.3} if isinstance(adapter, dict) else adapter and here)
