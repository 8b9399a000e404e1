"""Every key of the configuration, once: what it takes, its default, and a sentence.

From this schema follow Hydra's check of conf/ and of what is typed, the check of the values, "did you mean", `--help`
and docs/configuration.md. Nothing heavy is imported here, so that a mistake is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from lora_clip.demo import DEMO
from lora_clip.errors import ConfigError
from lora_clip.sources.registry import SOURCES

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Takes:
    """Which values a key takes: in words, with their unit, and as a check."""

    words: str
    accepts: Check


def one_of(*choices: str | None) -> Check:
    """Accepts these values."""
    return lambda value: value in choices


def at_least(least: int) -> Check:
    """Accepts whole numbers from here on."""
    return lambda value: type(value) is int and value >= least  # True is an int for isinstance


def list_of(check: Check) -> Check:
    """Accepts lists of what another check accepts."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def some_of(check: Check) -> Check:
    """Accepts lists, of one at least, of what another check accepts."""
    return lambda value: list_of(check)(value) and value != []


def either(*checks: Check) -> Check:
    """Accepts what one of several checks accepts."""
    return lambda value: any(check(value) for check in checks)


def is_name(value: Any) -> bool:
    """Accepts text."""
    return isinstance(value, str) and value != ""


def is_function_name(value: Any) -> bool:
    """Accepts `package.module:function`."""
    return isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value) is not None


def is_duration(value: Any) -> bool:
    """Accepts seconds, more than none."""
    return type(value) in (int, float) and 0 < value < float("inf")


def is_share(value: Any) -> bool:
    """Accepts numbers from 0 to 1."""
    return type(value) in (int, float) and 0 <= value <= 1


def is_embed(value: Any) -> bool:
    """Accepts image, or a list of image and perhaps text."""
    kinds = [value] if isinstance(value, str) else value
    return isinstance(kinds, list) and kinds in (["image"], ["image", "text"], ["text", "image"])


def has_target(value: Any) -> bool:
    """Accepts what Hydra can make an object of."""
    return isinstance(value, dict) and is_name(value.get("_target_"))


def is_sum(value: Any) -> bool:
    """Accepts mappings of a name to a number, as {a: 0.7, b: 0.3}."""
    numbers = isinstance(value, dict) and all(type(one) in (int, float) and isfinite(one) for one in value.values())
    return bool(value) and numbers and all(map(is_name, value))


AUTO, NULL = one_of("auto"), one_of(None)

# For OmegaConf each of these is Any, because it would convert: 7 to true for a bool; the folder 2024_10_05, which Hydra
# reads as a number, to "20241005" for a str. So OmegaConf checks the names of keys, and `check` their values.
Anything = Annotated[Any, Takes("what Lightning takes", lambda value: True)]
Flag = Annotated[Any, Takes("true or false", lambda value: isinstance(value, bool))]
Seconds = Annotated[Any, Takes("a number of seconds", is_duration)]
Share = Annotated[Any, Takes("a number from 0 to 1", is_share)]
BatchSize = Annotated[Any, Takes("a number of images, 1 or more, or auto", either(AUTO, at_least(1)))]
Workers = Annotated[Any, Takes("a number of processes, 0 or more, or auto", either(AUTO, at_least(0)))]
Limit = Annotated[Any, Takes("a number of images, 1 or more, or null for all", either(NULL, at_least(1)))]
Folder = Annotated[Any, Takes("a folder", is_name)]
FolderOrNull = Annotated[Any, Takes("a folder, or null", either(NULL, is_name))]
Shards = Annotated[Any, Takes("a path, a list of paths, or null", either(NULL, is_name, list_of(is_name)))]
HubDataset = Annotated[Any, Takes("org/name[@revision][:split], or null", either(NULL, is_name))]
Extensions = Annotated[Any, Takes("an extension, a list of them, or null", either(NULL, is_name, list_of(is_name)))]
Functions = Annotated[Any, Takes("a list of module:function", list_of(is_function_name))]
ModelName = Annotated[Any, Takes("one hub name or folder, or null", either(NULL, is_name))]
Adapters = Annotated[
    Any,
    Takes(
        "a hub name or folder, a sum as in {a: 0.7, b: 0.3}, null, or a list of these",
        either(NULL, is_name, is_sum, some_of(either(NULL, is_name, is_sum))),
    ),
]
Embedded = Annotated[
    Any, Takes("image or [image,text] (texts alone, a file with one a line: lora-clip embed-text FILE)", is_embed)
]
Decoding = Annotated[Any, Takes("exact, fast or gpu", one_of("exact", "fast", "gpu"))]
Copies = Annotated[Any, Takes("pinned or direct", one_of("pinned", "direct"))]
Orientation = Annotated[Any, Takes("ignore or exif", one_of("ignore", "exif"))]
Compilation = Annotated[Any, Takes("auto, true or false", either(AUTO, lambda value: isinstance(value, bool)))]
ComputeType = Annotated[
    Any,
    Takes(
        "auto, float32, bfloat16, float16, int8 or fp8",
        one_of("auto", "float32", "bfloat16", "float16", "int8", "fp8"),
    ),
]
LoggerOf = Annotated[Any, Takes("one of conf/logger/, or null", either(NULL, has_target))]
SAMPLE, FULL = "sample", "full"
Verification = Annotated[Any, Takes("sample or full", one_of(SAMPLE, FULL))]
OutputType = Annotated[Any, Takes("float16 or float32", one_of("float16", "float32"))]


# Each key: what it takes, a sentence and, where a group of conf/ gives another default than this, that one in words.


@dataclass
class Data:
    """Which images, and how they are read."""

    shards: Annotated[
        Shards,
        "WebDataset shards: a folder of tars, a path, an address (s3://…), a glob, a brace pattern, or a list of these",
        "the demo's",
    ] = None
    folder: Annotated[FolderOrNull, "a folder of images, at any depth, in place of shards"] = None
    parquet: Annotated[
        Shards,
        "Parquet files with a column of image bytes, or of {bytes, path}: a folder, path, glob or a list of these",
    ] = None
    hf: Annotated[HubDataset, "a Hugging Face dataset by name, as its Parquet files: org/name[@revision][:split]"] = (
        None
    )
    list: Annotated[
        Shards, "a list of paths or URLs, with keys and captions: .csv, .tsv, .jsonl, .parquet, or .txt with one a line"
    ] = None
    zip: Annotated[Shards, "zip files of images: a folder of them, a path, a glob, or a list of these"] = None
    batch_size: Annotated[BatchSize, "images per device and batch; auto: 256 on a GPU, 64 on a CPU"] = "auto"
    num_workers: Annotated[Workers, "decoding processes per rank; auto: the machine's cores, shared by its ranks"] = (
        "auto"
    )
    limit: Annotated[Limit, "only the first so many images, in input order"] = None
    decode: Annotated[
        Decoding,
        "fast: JPEGs much larger than the model's input are decoded at a part of their size; "
        "gpu: ordinary JPEGs on the GPU, by nvJPEG",
    ] = "exact"
    copies: Annotated[
        Copies,
        "to a GPU. direct: from where workers decode, without page-locked copies, beside what is computed "
        "(not yet measured)",
    ] = "pinned"
    decode_seconds: Annotated[Seconds, "an image that takes its decoder longer than so many seconds is rejected"] = 120
    orientation: Annotated[
        Orientation, "exif: turn photographs upright by their EXIF tag; ignore: as transformers' processors do"
    ] = "ignore"
    image_key: Annotated[
        Extensions,
        "only members with this WebDataset extension: jpg leaves 000.seg.png out; null: every image; "
        "of Parquet: the column of images",
    ] = None
    stages: Annotated[
        Functions, "stages of your own between reading and decoding, as in [mine:only_wide,mine:lower_case]"
    ] = field(default_factory=[].copy)  # `list` is a key here


ADDED_SOURCES = [one for one in SOURCES.values() if one.key not in Data.__dataclass_fields__]
"""Those whose key is not written out above: their line in the registry is all that they need."""
if ADDED_SOURCES and not TYPE_CHECKING:
    Added = [(one.key, Annotated[Shards, f"what the source reads, as in {one.example}"], None) for one in ADDED_SOURCES]
    Data = make_dataclass("Data", Added, bases=(Data,))


@dataclass
class Model:
    """The CLIP model and its adapter, and how they compute."""

    base: Annotated[ModelName, "a CLIP model: hub name or folder; null: the one that the adapter names"] = None
    adapter: Annotated[
        Adapters,
        "an adapter: hub name (name@revision) or folder; {a: 0.7, b: 0.3} a weighted sum; null: the base model alone; "
        "[a,{a: 0.7, b: 0.3},null]: each image is read once and embedded with each, an output each below output_dir",
        "the demo's",
    ] = MISSING
    dtype: Annotated[
        ComputeType,
        "of the computation; auto: float16 on a GPU, bfloat16 on a CPU that computes in it, else float32; "
        "int8, fp8: layers quantized by torchao",
    ] = "auto"
    compile: Annotated[
        Compilation,
        "torch.compile, layer by layer: slower to start, pays on long jobs; auto: on a GPU, from 4,000,000 images on",
    ] = False


@dataclass
class Output:
    """How the embeddings are kept."""

    dtype: Annotated[OutputType, "of the embeddings on disk"] = "float16"


@dataclass
class Trainer:
    """Lightning's own arguments; others: +trainer.NAME=VALUE."""

    accelerator: Annotated[Anything, "cpu, gpu, …; auto: a GPU where there is one"] = "auto"
    devices: Annotated[
        Anything, "of each node; auto: all GPUs, or one CPU process; under torchrun, what it started"
    ] = "auto"
    num_nodes: Annotated[Anything, "machines; under torchrun, what it started"] = 1
    strategy: Annotated[Anything, "auto: DDP over several devices"] = "auto"
    profiler: Annotated[Anything, "simple or advanced: one of Lightning's profilers"] = None


@dataclass
class Config:
    """The run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    output: Output = field(default_factory=Output)
    # a dict, because it is open to every argument of Lightning's
    trainer: dict[str, Any] = field(default_factory=lambda: asdict(Trainer()), metadata={"group": Trainer})
    embed: Annotated[Embedded, "what is embedded; [image,text]: captions too, into text_emb/"] = field(
        default_factory=lambda: ["image"]
    )
    output_dir: Annotated[
        Folder,
        "where the embeddings go, or s3://…: docs/remote.md; in a sweep each point gets a folder of its own below",
    ] = "outputs"
    resume: Annotated[Flag, "do only what is missing; false: discard what output_dir holds and begin anew"] = True
    share: Annotated[
        Flag, "true: several jobs may write to output_dir at once, and share the work; each is started with it"
    ] = False
    share_seconds: Annotated[
        Seconds, "a job that was silent for so many seconds is given up by those it shares with"
    ] = 60
    logger: Annotated[
        LoggerOf, "where the figures of the run go while it runs: one of Lightning's loggers; null: nowhere"
    ] = None
    index: Annotated[Flag, "true: build an index for searching when all is embedded"] = False
    verify: Annotated[
        Verification,
        "at the end of a run: sample reads a part of what it wrote again, full all; of the rest, files and sizes",
    ] = SAMPLE
    max_reject_fraction: Annotated[
        Share, "end a run of which more than this share of the images is rejected; 1: never"
    ] = 0.5


OPTIONS = {
    "data": {
        "demo": "the pictures that come with the project",
        "folder": "a folder of images: data.folder=…",
        "hf": "a Hugging Face dataset by name: data.hf=…",
        "list": "a list of paths or URLs: data.list=…",
        "parquet": "Parquet files with images in them: data.parquet=…",
        "shards": "WebDataset shards: data.shards=…",
        "zip": "zip files of images: data.zip=…",
    },
    "model": {
        "clip": "a CLIP model of yours: model.base=… model.adapter=…; chosen by itself where one of these is typed",
        "demo": "the small CLIP and the adapter that come with the project",
        "demo_base": "the same CLIP without the adapter",
    },
    "logger": {
        "csv": "a CSV file: output_dir/logs/csv/version_0/metrics.csv",
        "tensorboard": "TensorBoard's files: tensorboard --logdir output_dir/logs",
        "wandb": "Weights & Biases; logger.offline=true: without a network",
        "mlflow": "an MLflow server: logger.tracking_uri=… or MLFLOW_TRACKING_URI; without: output_dir/mlflow.db",
        "prometheus": "a text file for node_exporter's textfile collector: logger.path=…",
    },
    "debug": {"small": "16 images in one process, for a debugger"},
}
"""The files of conf/: what can be typed for a whole group, as in data=folder."""


@dataclass(frozen=True)
class Key:
    """A key as the schema has it; `name` is dotted, `default` as a person reads it."""

    name: str
    group: type
    takes: Takes
    sentence: str
    default: str


def as_typed(value: Any) -> str:
    """A value as it is typed for Hydra."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{as_typed(one)}' for name, one in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _walk(group: type, prefix: str) -> Iterator[Key]:
    hints, defaults = get_type_hints(group, include_extras=True), group()
    for one in fields(group):
        hint = hints[one.name]
        if get_origin(hint) is Annotated:
            takes, sentence, *shown = hint.__metadata__
            default = shown[0] if shown else as_typed(getattr(defaults, one.name))
            yield Key(prefix + one.name, group, takes, sentence, default)
        else:
            yield from _walk(one.metadata.get("group", hint), f"{one.name}.")


KEYS = tuple(_walk(Config, ""))
"""All keys, in the order in which they are shown."""


def check(config: DictConfig) -> None:
    """Raises ConfigError where a value is missing, or is none that its key takes."""
    for one in KEYS:
        if _is_missing(config, one.name):
            raise ConfigError(f"{one.name} is not given: type {one.name}=… ({one.sentence})")
        if not one.takes.accepts(value := read(config, one.name)):
            typed = as_typed(value)
            raise ConfigError(f"{one.name}={typed}: give {one.takes.words}{_hint(one, value)}")


def _is_missing(config: DictConfig, name: str) -> bool:
    """Whether a key is still to be given, or was taken out."""
    group, _, own = name.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    return own not in node.keys() or OmegaConf.is_missing(node, own)  # noqa: SIM118, a DictConfig's `in` says no to ???


def read(config: DictConfig, name: str) -> Any:
    """The value of a key as plain Python, interpolations resolved."""
    value = OmegaConf.select(config, name)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _hint(one: Key, value: Any) -> str:
    """A hint where a name was read as a number, or as true."""
    if isinstance(value, int | float) and one.takes.accepts(str(value)):
        return f"""; a name that reads as a number in two pairs of quotes: '{one.name}="…"'"""
    return ""


def register() -> None:
    """Give Hydra this schema, to check conf/ and what is typed against, and `${demo:…}`: what the package holds."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    for source in ADDED_SOURCES:
        ConfigStore.instance().store(group="data", name=source.key, node={source.key: None})
    OmegaConf.register_new_resolver("demo", lambda name: str(DEMO / name), replace=True)
