"""From files and the command line to `Settings`.

A setting takes the value of the last of these sources that gives one: its default, the protocol's
file, `--config`, the options of the command line, `--set`. The variant's file gives the ordering.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from resvar.errors import (
    UnreadableError,
    UserError,
    quoted,
    require_given,
    shortened,
    unknown,
)
from resvar.files import shipped
from resvar.models.layout import network_layers
from resvar.models.ordering import PLACES, Ordering, find_ordering, shipped_as
from resvar.roles import RECORDED
from resvar.settings import (
    BEFORE,
    PROTOCOL_KEYS,
    REMOVED,
    RESOLVED,
    Settings,
)
from resvar.strict_yaml import parse_yaml, read_yaml, spelling_advice
from resvar.synonyms import meant_setting

ORDERING_KEYS = (*PLACES, "unusual")
"""The settings that write out the ordering that `variant` names."""

WANTED: dict[str, type] = {"int_type": int, "float_type": float, "bool_type": bool}
"""The type that a setting should have, by pydantic's name of the error."""


@dataclass(frozen=True)
class Spelling:
    """How error messages name an option: `--depth` on the command line, `depth=` from Python.

    Attributes:
        option: from the name of a setting.
        example: what can be given for a variant and a depth.
    """

    option: Callable[[str], str]
    example: str


COMMAND_LINE = Spelling(
    lambda name: f"--{name.replace('_', '-')}", "--variant full-preact --depth 20"
)


def resolve(
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    spelling: Spelling = COMMAND_LINE,
) -> Settings:
    """The settings of a run to be trained.

    Args:
        config: a YAML file of settings, such as a run's `config.yaml`.
        options: values by name; None means not given.
        overrides: the `KEY=VALUE` of `--set`.
        spelling: how error messages name an option.

    Raises:
        UserError: a name is unknown, a value wrong, or the network cannot be trained; the message
            names its source and the remedy.
    """
    given = GivenValues() if config is None else _values_in(read_yaml(config), str(config))
    for name, value in (options or {}).items():
        if value is not None:
            given.add({name: value}, spelling.option(name))
    given.add(parse_overrides(overrides), "--set")
    needed = {spelling.option(key): given.values.get(key) for key in ("variant", "depth")}
    require_given(needed, spelling.example)
    settings = _settle(given)
    _require_trainable(settings)
    return settings


def settings_in(values: Mapping[str, Any], source: str) -> Settings:
    """The settings in a mapping, read as `resolve` reads those of a file.

    Raises:
        UserError: a name is unknown or a value wrong; the message names `source`.
    """
    return _settle(_values_in(values, source))


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["lr=0.05", "milestones=[10, 20]"]` → values, each read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    values = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UserError(
                f"--set {shortened(text)}: write it as KEY=VALUE, such as --set lr=0.05."
            )
        values[key.strip()] = parse_yaml(value, f"--set {shortened(key.strip())}")
    return values


def read_protocol(protocol: str) -> tuple[str, dict[str, Any], Path]:
    """Name, values and file of a protocol: a shipped name or the path of a YAML file.

    Raises:
        UserError: the protocol is unknown, or its file contains settings not of training.
    """
    known = shipped("protocols")
    if protocol in known:
        path = known[protocol]
    elif protocol.endswith((".yaml", ".yml")):
        path = Path(protocol)
    else:
        otherwise = f"; choose from {', '.join(known)}, or give a YAML file."
        raise UserError(unknown("protocol", protocol, known, otherwise))
    values = read_yaml(path)
    for key in values:
        if key not in PROTOCOL_KEYS:
            otherwise = "; a protocol contains training settings only."
            raise UserError(f"{path}: {unknown_setting(key, PROTOCOL_KEYS, otherwise)}")
    return path.stem, values, path


# --- from values to settings ----------------------------------------------------------------------


def unknown_setting(name: str, known: Collection[str], otherwise: str = "") -> str:
    """`unknown setting 'learning_rate'; did you mean 'lr'?`, and where the settings are listed."""
    hint = meant_setting(name, known) or otherwise or "."
    return f"unknown setting {quoted(name)}{hint} `resvar settings` lists them all."


@dataclass
class GivenValues:
    """Values by name, each with its source, which error messages name.

    Attributes:
        prescribed: values that do not count as changes: those of the protocol, and what a record
            has in place of `auto`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    prescribed: dict[str, Any] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any], source: str) -> None:
        """Put `values` on top.

        Raises:
            UserError: a name is not a setting; the message suggests the nearest.
            UnreadableError: likewise, in the record of a run.
        """
        for key in values:
            if key not in Settings.model_fields:
                sentence = f"{source}: {unknown_setting(key, Settings.model_fields)}"
                if set(values) >= RECORDED:
                    raise UnreadableError(
                        f"{sentence} This is the record of a run, probably of a later version of "
                        "resvar: update resvar."
                    )
                raise UserError(sentence)
        if "variant" in values:  # it brings its own ordering
            for key in ORDERING_KEYS:
                self.values.pop(key, None)
        self.values.update(values)
        self.sources.update(dict.fromkeys(values, source))


def _values_in(values: Mapping[str, Any], source: str) -> GivenValues:
    """The values in a file. The record of a run may be older than some settings."""
    given = GivenValues()
    recorded = set(values) >= RECORDED
    if recorded:
        values = {key: value for key, value in values.items() if key not in REMOVED}
    given.add(values, source)
    if recorded:
        given.values = {**BEFORE, **given.values}
        kept = (*PROTOCOL_KEYS, *RESOLVED)
        given.prescribed = {name: given.values[name] for name in kept if name in given.values}
    return given


def _settle(given: GivenValues) -> Settings:
    return _validated(_with_ordering(_with_protocol(given)))


def _with_protocol(given: GivenValues) -> GivenValues:
    """The same, with the protocol's values below all others."""
    asked = given.values.get("protocol", "paper")
    source = given.sources.get("protocol", "--protocol")
    if not isinstance(asked, str):
        raise UserError(f"{source}: 'protocol' must be a name or a YAML file, not {quoted(asked)}.")
    if asked not in shipped("protocols") and set(given.values) >= RECORDED:
        return given  # a record is complete; its protocol's file may be on another machine
    try:
        name, values, path = read_protocol(asked)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source not in str(error) else str(error)) from None
    resolved = {key: given.prescribed[key] for key in RESOLVED if key in given.prescribed}
    return GivenValues(
        {**values, **given.values, "protocol": name},
        {**dict.fromkeys(values, str(path)), **dict.fromkeys(given.values, ""), **given.sources},
        {**values, **resolved},
    )


def _with_ordering(given: GivenValues) -> GivenValues:
    """The same, with the variant's ordering written out."""
    values, sources = given.values, given.sources
    for key in ("variant", "depth"):
        if key not in values:
            raise UserError(f"'{key}' is missing.")
    variant, source = values["variant"], sources["variant"]
    if not isinstance(variant, str):
        asked = quoted(variant)
        raise UserError(f"{source}: 'variant' must be a name or a YAML file, not {asked}.")
    spelled = {key: values[key] for key in ORDERING_KEYS if key in values}
    if spelled and set(PLACES) - set(spelled):
        missing = ", ".join(sorted(set(PLACES) - set(spelled)))
        raise UserError(
            f"{sources[next(iter(spelled))]}: to change an ordering, write a YAML file and use "
            f"--variant FILE.yaml (here {missing} would be missing)."
        )
    try:
        if spelled and shipped_as(variant) is None:
            ordering = Ordering(variant, **{key: _as_ops(key, v) for key, v in spelled.items()})
        else:
            ordering = find_ordering(variant)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    written = {place: list(getattr(ordering, place)) for place in PLACES}
    for place in PLACES:
        if spelled and spelled[place] != written[place]:
            shown = quoted(spelled[place])
            raise UserError(
                f"{sources[place]}: '{place}: {shown}' differs from the ordering '{variant}'; give "
                "yours its own name in a YAML file (--variant FILE.yaml)."
            )
    complete = {**values, "variant": ordering.name, **written, "unusual": ordering.unusual}
    return replace(given, values=complete)


def _as_ops(key: str, value: Any) -> Any:
    """The value of one of `ORDERING_KEYS`, as `Ordering` takes it."""
    if key == "unusual":
        if not isinstance(value, bool):
            raise UserError("'unusual' must be true or false.")
        return value
    if not isinstance(value, list) or not all(isinstance(op, str) for op in value):
        raise UserError(f"'{key}' must be a list of ops, such as [bn, relu] or [].")
    return tuple(value)


def _validated(given: GivenValues) -> Settings:
    """The settings, every value checked and the architecture's open choices made."""
    try:
        settings = Settings(**given.values)
    except pydantic.ValidationError as error:
        raise UserError(_one_sentence(error, given)) from None
    try:
        architecture = settings.architecture
    except UserError as error:
        raise UserError(f"{given.sources.get('depth', 'depth')}: {error}") from None
    chosen = {key: getattr(architecture, key) for key in ("unit", "stem", "shortcut", "stride_on")}
    return settings.model_copy(update=chosen).prescribing(given.prescribed)


def _require_trainable(settings: Settings) -> None:
    """Refuse a network in which BN would see one value per channel, which has no variance.

    The images of a micro-batch are always `bn_batch_size`: batches run on from epoch to epoch.
    """
    if settings.bn_batch_size > 1:
        return
    size = settings.input_size
    rows = network_layers(settings.ordering, settings.architecture, 1, size).values()
    layers = (layer for units in rows for unit in units for layer in unit)
    if any(layer.op == "bn" and layer.size == 1 for layer in layers):
        other = ", or --set stem=cifar" if settings.stem == "imagenet" else ""
        raise UserError(
            f"'bn_batch_size' is 1, and images of {size}×{size} pixels shrink to one in this "
            "network: BN cannot normalise a single value per channel; use 2 images or more (--set "
            f"bn_batch_size=2 --set batch_size=2){other}."
        )


def _one_sentence(error: pydantic.ValidationError, given: GivenValues) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # a condition between settings
        sentence = first["msg"].removeprefix("Value error, ") + "."
        sources = {given.sources.get(name, "") for name in re.findall("'([a-z_]+)'", sentence)}
        return f"{sources.pop()}: {sentence}" if len(sources) == 1 else sentence
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"the protocol '{given.values.get('protocol')}' lacks '{key}'; add it."
    expected = re.sub("^(Input|String|List) should ", "", first["msg"])
    value = quoted(given.values.get(key))
    advice = spelling_advice(first["input"], WANTED.get(first["type"]))
    source = given.sources.get(key, "settings")
    return f"{source}: '{key}' is {value}, but should {expected}{advice}."
