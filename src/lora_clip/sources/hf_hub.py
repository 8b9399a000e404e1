"""Which files a Hugging Face dataset has, and each of them in the hub's cache: all that is asked of the hub.

Tokens stay where `huggingface_hub` looks for them; nothing here sees one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from lora_clip.errors import ConfigError, DataError

CONVERTED = "refs/convert/parquet"
NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:\s]+))?(?::(?P<split>[\w.-]+(?:/[\w.-]+)?))?")
ADDRESS = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
OF_MANY = re.compile(r"(?:.*/)?(?P<split>[\w.-]+?)-\d{5}-of-\d{5}[^/]*\.parquet")
COMMIT = re.compile("[0-9a-f]{40}")
Splits = dict[tuple[str, str], list[str]]


class Dataset(NamedTuple):
    """What `data.hf` names: a repository, and of it a revision and a split, where they were typed."""

    name: str
    revision: str | None
    split: str | None

    def __str__(self) -> str:
        return f"data.hf={self.name}" + (f"@{self.revision}" if self.revision else "")


class Listing(NamedTuple):
    """A commit of a repository with the sizes of its files; of the cache alone, of those that are there."""

    commit: str
    sizes: Mapping[str, int]


def parse(typed: str) -> Dataset:
    """`org/name[@revision][:split]`. Raises ConfigError for anything else."""
    found = NAME.fullmatch(typed.removeprefix("hf://datasets/"))
    if not found:
        raise ConfigError(f"data.hf={typed} is no name of a dataset: type data.hf=org/name, or org/name@revision:split")
    return Dataset(found["name"], found["revision"], found["split"])


def files_of(wanted: Dataset, commits: Mapping[str, str] | None) -> tuple[dict[str, str], dict[str, int]]:
    """The commit that is read, by `own` or `converted`, and its files' addresses with their sizes.

    `commits` are those of an earlier run, which are read again. Raises DataError where there is nothing to read.
    """
    if commits and "converted" in commits:
        return _converted(wanted, commits["converted"])
    listing = _listing(wanted, (commits or {}).get("own") or wanted.revision)
    if not _parquet(listing):
        return _converted(wanted, CONVERTED)
    splits = _declared(wanted, listing) or _by_names(listing)
    return {"own": listing.commit}, _addresses(wanted, listing, splits)


def _converted(wanted: Dataset, revision: str) -> tuple[dict[str, str], dict[str, int]]:
    """The hub's own conversion, config/split/0000.parquet; it is of the branch main alone."""
    what = f"{wanted} has no Parquet files"
    if wanted.revision not in (None, "main", CONVERTED):
        raise DataError(f"{what} at this revision; the hub converts the branch main: type data.hf={wanted.name}")
    listing = _listing(wanted, revision, f"{what}, nor has the hub converted it: load it with datasets, and type ")
    splits: Splits = {}
    for file in _parquet(listing):
        config, _, rest = file.partition("/")
        splits.setdefault((config, rest.partition("/")[0]), []).append(file)
    return {"converted": listing.commit}, _addresses(wanted, listing, splits)


def _parquet(listing: Listing) -> list[str]:
    return sorted(file for file in listing.sizes if file.endswith(".parquet"))


def _declared(wanted: Dataset, listing: Listing) -> Splits:
    """What the README's `configs` say, where they name files of this commit."""
    splits: Splits = {}
    for config in _configs(wanted, listing):
        files = config.get("data_files") or []
        files = [{"split": "train", "path": files}] if isinstance(files, str) else files
        for one in (one for one in files if isinstance(one, dict)):
            patterns = one.get("path") or []
            patterns = [patterns] if isinstance(patterns, str) else patterns
            found = [file for file in _parquet(listing) if any(fnmatch(file, str(each)) for each in patterns)]
            if found:
                splits[str(config.get("config_name", "default")), str(one.get("split", "train"))] = found
    return splits


def _configs(wanted: Dataset, listing: Listing) -> list[dict[str, Any]]:
    import yaml

    if "README.md" not in listing.sizes:
        return []
    text = Path(download(f"hf://datasets/{wanted.name}@{listing.commit}/README.md")).read_text(errors="replace")
    try:
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except yaml.YAMLError:
        return []
    configs = head.get("configs") if isinstance(head, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _by_names(listing: Listing) -> Splits:
    """`data/train-00000-of-00005.parquet` is of `train`; so is what has no such name."""
    splits: Splits = {}
    for file in _parquet(listing):
        found = OF_MANY.fullmatch(file)
        splits.setdefault(("default", found["split"] if found else "train"), []).append(file)
    return splits


def _addresses(wanted: Dataset, listing: Listing, splits: Splits) -> dict[str, int]:
    names = {pair: f"{pair[0]}/{pair[1]}" for pair in splits}
    chosen = [pair for pair in splits if wanted.split in (None, pair[1], pair[0], names[pair])]
    if not chosen or len({config for config, _ in chosen}) > 1:
        problem = f"has no split {wanted.split!r}" if not chosen else "has several configurations"
        raise DataError(f"{wanted} {problem}: type {wanted}:SPLIT with one of {', '.join(sorted(names.values()))}")
    files = dict.fromkeys(file for pair in chosen for file in splits[pair])
    return {f"hf://datasets/{wanted.name}@{listing.commit}/{file}": listing.sizes[file] for file in files}


def _listing(wanted: Dataset, revision: str | None, lacking: str | None = None) -> Listing:
    """A commit's files, by the hub or offline by its cache. Raises DataError.

    A hub that does not answer is no reason to take what is in the cache, which may be a part, for the whole.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(wanted.name, revision=revision, files_metadata=True)
    except Exception as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        if offline and (cached := _cached(wanted.name, revision or "main")) is not None:
            return cached
        if lacking and isinstance(error, RevisionNotFoundError):
            raise DataError(f"{lacking}data=parquet data.parquet=FOLDER") from error
        raise DataError(f"{wanted}: {_reason(error, wanted)}") from error
    assert info.sha is not None, "the hub names the commit"
    return Listing(info.sha, {one.rfilename: one.size or 0 for one in info.siblings or []})


def _cached(name: str, revision: str) -> Listing | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    files = (path for path in snapshot.rglob("*") if path.is_file())
    return Listing(commit, {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files})


def _reason(error: Exception, wanted: Dataset) -> str:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    if isinstance(error, GatedRepoError):
        return "the dataset is gated: ask for access on its page of the hub, then type hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such dataset: look at its name, or type hf auth login if it is private"
    if isinstance(error, NoRevision):
        return f"the dataset has no revision {wanted.revision or 'main'!r}: type a branch, tag or commit of it"
    if isinstance(error, OfflineModeIsEnabled):
        return f"not in the cache, and HF_HUB_OFFLINE is set: type hf download --repo-type dataset {wanted.name}"
    return f"the Hugging Face hub did not give it ({type(error).__name__}); the same command tries again"


def download(address: str, from_hub: bool = True) -> str:
    """The file of a shard in the hub's cache, fetched if need be. Raises DataError where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    found = ADDRESS.fullmatch(address)
    assert found is not None, f"{address} is no address of ours"
    name, commit, file = found.groups()
    disable_progress_bars()  # the bar of the job is the one that is shown
    try:
        return hf_hub_download(name, file, repo_type="dataset", revision=commit, local_files_only=not from_hub)
    except Exception as error:
        raise DataError(f"{address} is not in the cache, and {_why_not(error, name)}") from error


def _why_not(error: Exception, name: str) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return "the hub was not asked or did not answer"
    return _reason(error, Dataset(name, None, None))
