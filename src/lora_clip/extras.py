"""Packages that only a part of the commands needs, and that a plain installation goes without."""

from __future__ import annotations

import importlib.util
import shlex
import sys

from lora_clip.errors import ConfigError

SEARCH = "lora-clip[search]"
QUANTIZATION = "lora-clip[quantization]"
EXPORT = "lora-clip[export]"
GPU = "lora-clip[gpu]"


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(extra: str, *modules: str) -> None:
    """Raises ConfigError, with what to type, where some of an extra's modules are not installed."""
    if lacking := [module for module in modules if not installed(module)]:
        verb = "is" if len(lacking) == 1 else "are"
        raise ConfigError(f"{' and '.join(lacking)} {verb} not installed: type {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The command that installs an extra into this very environment."""
    return shlex.join([sys.executable, "-m", "pip", "install", extra])
