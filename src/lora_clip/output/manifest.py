"""manifest.json: what an output holds and how it came to be; written last: its presence says that a run ended well."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_clip import __version__
from lora_clip.io.atomic import write_text
from lora_clip.output.layout import FORMAT, check_format
from lora_clip.output.verify import Verdict

PACKAGES = ("torch", "lightning", "transformers", "peft", "webdataset", "simplejpeg", "pillow", "numpy", "pyarrow")


def build_manifest(
    fingerprint: Mapping[str, Any],
    checkpoint: Any,
    verdict: Verdict,
    run: Mapping[str, Any],
    adapter: Any,
    proof: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest as plain JSON values; `run` describes the latest run, all else is of the whole output."""
    lora = None if adapter is None else asdict(adapter)
    return {
        "format": FORMAT,
        "model": {"base": _anywhere(checkpoint.base), "adapter": _anywhere(checkpoint.adapter), "lora": lora},
        "fingerprint": fingerprint,
        "images": verdict.images,
        "rows": verdict.rows,
        "rejects": verdict.rejects,
        **({} if verdict.captions is None else {"captions": verdict.captions}),
        "shards": verdict.shards,
        "width": verdict.width,
        "dtype": verdict.dtype,
        "proof": proof,
        **({} if decoding is None else {"decoding": decoding}),
        "run": run,
        "versions": dict(_versions()),
    }


@cache
def _versions() -> Mapping[str, str]:
    """Of this program, Python and the packages, looked up once for all outputs of a job."""
    packages = {name: version(name) for name in PACKAGES}
    return {"lora_clip": __version__, "python": platform.python_version(), **packages}


def _anywhere(name: Any) -> Any:
    """A model's name, or the names in a sum of adapters, found from any folder: a search may start in another."""
    if isinstance(name, Mapping):
        return {_anywhere(one): weight for one, weight in name.items()}
    folder = Path(name or "").expanduser()
    return str(folder.absolute()) if name and folder.is_dir() else name


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    write_text(root / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def upgrade_manifest(root: Path) -> None:
    """Let the manifest tell the format that a run which had nothing to embed has brought the output to."""
    manifest = read_manifest(root)
    if manifest is not None and manifest["format"] != FORMAT:
        write_manifest(root, {**manifest, "format": FORMAT})


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest, or None for an output that no run has finished. Raises OutputError for a newer format."""
    path = root / "manifest.json"
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text())
    check_format(path, manifest.get("format"))
    if "verdict" in (run := manifest.get("run") or {}):
        run["bottleneck"] = run.pop("verdict")  # as format 1 called it
    return manifest
