"""What is typed wrong: what Hydra and OmegaConf say of it becomes one message that says what to type."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lora_clip.config import KEYS, OPTIONS
from lora_clip.errors import ConfigError

BRACES = """Put the pattern in two pairs of quotes: 'data.shards="/data/{00000..00056}.tar"'"""
ALL_KEYS = "--help shows all keys"
OWN_MODEL = "model=clip"


def check_arguments(arguments: Sequence[str]) -> None:
    """Catch what Hydra would misread: a key without a value; one key given many times, of which it would keep the last.

    Raises ConfigError.
    """
    for argument in arguments:
        if key := _dashed(argument):
            raise ConfigError(f"{argument}: keys are typed without dashes and with =: {key}=…")
    typed = [argument for argument in arguments if argument[:1] != "-"]
    times = Counter(argument.partition("=")[0] for argument in typed if "=" in argument)
    for key, count in times.items():
        if count > 1 and not key.startswith("hydra"):
            # A shell makes of bare braces as many arguments as there are alternatives
            hint = f": the shell expanded the braces. {BRACES}" if key == "data.shards" else ": give it once"
            raise ConfigError(f"{key} is given {count} times{hint}")
    for argument in typed:
        if argument in _known():
            raise ConfigError(f"{argument} has no value: type {argument}=…")
        if argument.startswith("="):
            raise ConfigError(f"{argument} has no key: type key{argument}, without a blank")


def _dashed(argument: str) -> str | None:
    """The key that is meant by `--output_dir`, `--batch-size` and the like, which Hydra takes for its own flags."""
    name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
    meant = [key for key in _names() if name in (key, key.rpartition(".")[2])] if argument[:2] == "--" else []
    return meant[0] if meant else None


def with_own_model(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `model=clip` where a base or an adapter is named: the demo's adapter fits the demo's base."""
    names = [argument.partition("=")[0].lstrip("+") for argument in arguments]
    own = [place for place, name in enumerate(names) if name in ("model.base", "model.adapter")]
    if not own or "model" in names:
        return list(arguments)
    return [*arguments[: own[0]], OWN_MODEL, *arguments[own[0] :]]  # beside the others: argparse wants them in a row


def without_own_model(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """The overrides of a sweep's points as they were typed: without what `with_own_model` put in."""
    typed = [[override for override in overrides if override != OWN_MODEL] for overrides in points]
    return typed if all(OWN_MODEL in with_own_model(overrides) for overrides in typed) else [*map(list, points)]


def configuration_message(error: BaseException) -> str | None:
    """What Hydra or OmegaConf found wrong, with what to type; None for other errors."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    text = str(error).strip()
    if "Config group override must be" in text:  # a ValueError of Hydra's
        return f"a group takes one of its names: {'; '.join(map(_options, OPTIONS))}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error.missing_cfg_file, error.options) or _first_paragraph(text)
    if found := re.match(r"Multiple values for (\w+)", text):
        return f"{found[1]} has a place of its own: type it without the plus, {found[1]}=…"
    return _several_values(text) or _unknown_key(text) or _first_paragraph(text)


def _first_paragraph(text: str) -> str:
    """Without where Hydra looked, and OmegaConf's description of the node."""
    return re.split(r"\n(Config search path|\s+full_key:)", text)[0].strip()


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if "{" in value:
        return f"bare braces are Hydra's own syntax. {BRACES}"
    if not equals:
        return f"{key} is not key=value{_did_you_mean(key, _known())}; {ALL_KEYS}"
    quoted = value.replace('"', '\\"')
    return f"""{override} cannot be read: put the value in two pairs of quotes: '{key}="{quoted}"'"""


def _several_values(text: str) -> str | None:
    if (found := re.search(r"Ambiguous value for argument '(([^=]+)=(.*))'\n", text)) is None:
        return None
    override, key, value = found.groups()
    return (
        f"{override} gives several values: for a sweep over them type -m as well; "
        f"""for one value with a comma in it: '{key}="{value}"'"""
    )


def _no_such_option(file: str | None, options: Iterable[str] | None) -> str | None:
    """The message for data=nothing, which Hydra looks for in data/nothing."""
    group, slash, option = (file or "").rpartition("/")
    known = options or OPTIONS.get(group)
    return f"{group}={option}: give {_list(known)}{_did_you_mean(option, known)}" if slash and known else None


def _unknown_key(text: str) -> str | None:
    found = re.search(r"(?:Could not override '|Error merging override )\+*([\w.]+)", text)
    if found is None:
        return None
    given, groups = found[1], {key.name.partition(".")[0] for key in KEYS if "." in key.name}
    if given in groups:
        return f"{given} is a group of keys{_did_you_mean(given, _names())}; {ALL_KEYS}"
    own = f"; other arguments of Lightning's Trainer take a plus: +{given}=…" if given.startswith("trainer.") else ""
    return f"unknown key {given}{_meant_key(given)}{own}; {ALL_KEYS}"


def _meant_key(given: str) -> str:
    """The key that is like it in its own group, where the group's name would count for likeness; else in any."""
    group, dot, name = given.rpartition(".")
    own = {key.rpartition(".")[2]: key for key in _names() if dot and key.startswith(f"{group}.")}
    if close := difflib.get_close_matches(name, own, n=1):
        return _meant(own[close[0]])
    return "" if own else _did_you_mean(given, _known())


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return _meant(close[0]) if close else ""


def _meant(key: str) -> str:
    return f" (did you mean {key}?)"


def _names() -> list[str]:
    return [key.name for key in KEYS]


def _known() -> list[str]:
    return [*_names(), *OPTIONS]


def _options(group: str) -> str:
    return f"{group}={'|'.join(OPTIONS[group])}"


def _list(options: Iterable[str]) -> str:
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last
