"""`resvar settings` and `resvar list`: what can be set, and what the package contains."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console

from resvar.config import read_protocol, unknown_setting
from resvar.console import deliver, deliver_drawn, output_format
from resvar.errors import UserError
from resvar.files import configs, read_text, shipped
from resvar.models.architecture import IMAGENET, PUBLISHED_CIFAR
from resvar.models.ordering import ALIASES, PLACES, known_variants, read_ordering
from resvar.roles import RolePart
from resvar.settings import (
    ROLES,
    SAMPLE_TEST_IMAGES,
    SAMPLE_TRAINING_IMAGES,
    Settings,
)
from resvar.strict_yaml import LARGEST_YAML, read_yaml, to_yaml
from resvar.table import Table, draw_parts, filled, left, right

FORMATS = ("table", "json")

PARTS: Mapping[RolePart, str] = {
    "ordering": "Ordering: where BN and ReLU are in a unit",
    "architecture": "Network",
    "data": "Data",
    "training": "Training: equal in runs that are compared",
    "execution": "Execution: how it is computed",
    "monitoring": "Monitoring",
    "run": "Run",
}

SOURCES = (
    "paper and imagenet follow arXiv:1603.05027, appendix. It does not state when training on "
    "ImageNet ends: 90 epochs are the default of fb.resnet.torch.",
    "arXiv:1512.03385, section 3.4, has another schedule for ImageNet: it divides the learning "
    "rate when the error plateaus, for up to 600,000 iterations.",
)
"""Notes below the table of protocols."""


# --- settings -------------------------------------------------------------------------------------


def print_settings(name: str | None, format: str | None, out: Path | None) -> None:
    """Print all settings, or one in full.

    Raises:
        UserError: there is no setting of that name; the message suggests the one that is meant.
    """
    format = output_format(out, format, FORMATS)
    if name is not None and name not in ROLES:
        raise UserError(unknown_setting(name, ROLES))
    names = tuple(ROLES) if name is None else (name,)
    if format == "json":
        described = {each: _as_json(each) for each in names}
        deliver(json.dumps(described, indent=2, ensure_ascii=False) + "\n", out)
    elif name is None:
        deliver_drawn(lambda console: draw_parts(_all_settings(), console), out)
    else:
        deliver_drawn(lambda console: draw_parts(_one_setting(name), console), out)


def _all_settings() -> Iterator[str | Table]:
    columns = [
        left("setting", lambda name: name),
        left("what it does", _explained, wrap=24),
        right("default", lambda name: _shown(_default(name))),
    ]
    for part, heading in PARTS.items():
        yield filled(heading, columns, [name for name, role in ROLES.items() if role.part == part])
        yield ""
    protocols = _protocols()
    given = [right(name, partial(_given, values)) for name, values in protocols.items()]
    source = left("fixed in", lambda name: ROLES[name].paper, drop=2)
    set_by_one = [name for name in ROLES if any(name in values for values in protocols.values())]
    yield filled("What the protocols set", [columns[0], *given, source], set_by_one, SOURCES)
    yield ""
    yield "`resvar settings NAME` explains one. Change one with --set NAME=VALUE."


def _given(values: Mapping[str, Any], name: str) -> str:
    return _shown(values[name]) if name in values else ""


def _explained(name: str) -> str:
    choices = _choices_of_setting(name)
    return f"{ROLES[name].help} ({', '.join(choices)})" if choices else ROLES[name].help


def _one_setting(name: str) -> Iterator[str | Table]:
    role = ROLES[name]
    facts = {
        "what it does": role.help,
        "type": _type_in_words(_schema(name)),
        "default": _shown(_default(name)),
        "unit": role.unit,
        "fixed in": role.paper,
        **{f"in {p}": _shown(v[name]) for p, v in _protocols().items() if name in v},
        "when a run resumes": "must be the same" if role.hashed else "may change: the bits stay",
        "example": _example(name),
    }
    columns = (left("setting", lambda row: row[0]), left(name, lambda row: row[1], wrap=30))
    yield filled("", columns, [row for row in facts.items() if row[1]])


def _as_json(name: str) -> dict[str, Any]:
    field, role = Settings.model_fields[name], ROLES[name]
    return {
        "part": role.part,
        "help": role.help,
        "type": _type_in_words(_schema(name)),
        "choices": _choices_of_setting(name),
        "required": field.is_required(),
        "default": None if field.is_required() else field.default,
        "unit": role.unit or None,
        "source": role.paper or None,
        "protocols": {p: v[name] for p, v in _protocols().items() if name in v},
        "hashed": role.hashed,
    }


def _protocols() -> dict[str, dict[str, Any]]:
    return {name: read_protocol(name)[1] for name in _in_order(shipped("protocols"))}


def _in_order(protocols: Mapping[str, Path]) -> list[str]:
    """The paper's first."""
    return sorted(protocols, key=lambda name: (name != "paper", name))


def _default(name: str) -> Any:
    field = Settings.model_fields[name]
    if not field.is_required():
        return field.default
    return "by protocol" if ROLES[name].part == "training" else "required"


def _shown(value: Any) -> str:
    """A value as it is typed; nothing for a default that other settings decide."""
    return "" if value is None else to_yaml({"x": value}).removeprefix("x: ").strip()


def _choices_of_setting(name: str) -> list[str]:
    return [str(word) for word in _schema(name).get("enum", ())]


def _schema(name: str) -> dict[str, Any]:
    """The JSON schema of a setting's value, as far as it is not null."""
    schema: dict[str, Any] = Settings.model_json_schema()["properties"][name]
    return next((kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"), schema)


def _type_in_words(schema: Mapping[str, Any]) -> str:
    """`whole number, 1 or more`, `list of whole numbers`, `sgd, muon`."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        return f"list: {_type_in_words(schema['items'])}"
    limits = [words.format(schema[key]) for key, words in LIMITS.items() if key in schema]
    return ", ".join([JSON_TYPES[schema["type"]], *limits])


def _example(name: str) -> str:
    """`--set lr=0.1`, with a value that the setting can have."""
    values = [
        *(v[name] for v in _protocols().values() if name in v),
        *_choices_of_setting(name),
        _default(name),
    ]
    given = [value for value in values if value not in (None, "required", "by protocol", [])]
    return f"--set {shlex.quote(f'{name}={_shown(given[0])}')}" if given else ""


# --- what the package contains --------------------------------------------------------------------


def print_list(kind: str | None, format: str | None, out: Path | None) -> None:
    """Print the names that commands take, of one kind or of all."""
    format = output_format(out, format, FORMATS)
    kinds = tuple(LISTS) if kind is None else (kind,)
    if format == "json":
        rows = {each: LISTS[each]() for each in kinds}
        deliver(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", out)
        return

    def draw(console: Console) -> None:
        for each in kinds:
            rows = LISTS[each]()
            columns = [
                left(key.replace("_", " "), partial(_cell, key), wrap=24 if key == "about" else 0)
                for key in rows[0]
            ]
            draw_parts([filled(each.capitalize(), columns, rows), ""], console)

    deliver_drawn(draw, out)


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = row[key]
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else value or ""


def _ordering_rows() -> list[dict[str, Any]]:
    also = {name: alias for alias, name in ALIASES.items()}
    figures = {name: read_yaml(path).get("figure") for name, path in shipped("variants").items()}
    rows = []
    for name in known_variants():
        ordering = read_ordering(shipped("variants")[name])
        lists = {place: list(getattr(ordering, place)) for place in PLACES}
        rows.append({"name": name, "also": also.get(name), "figure": figures[name], **lists})
    return rows


def _protocol_rows() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "iterations": values["iterations"],
            "batch_size": values["batch_size"],
            "about": _about(shipped("protocols")[name]),
        }
        for name, values in _protocols().items()
    ]


def _sweep_rows() -> list[dict[str, Any]]:
    rows = []
    for name, path in shipped("sweeps").items():
        values = read_yaml(path)
        runs = len(values["variants"]) * len(values["depths"]) * values["seeds"]
        rows.append(
            {"name": name, "runs": runs, "protocol": values["protocol"], "about": _about(path)}
        )
    return rows


def _launcher_rows() -> list[dict[str, Any]]:
    local = {"name": "local", "about": "Processes on this machine."}
    files = shipped("launchers").items()
    return [local, *({"name": name, "about": _about(path)} for name, path in files)]


def _dataset_rows() -> list[dict[str, Any]]:
    official = read_yaml(configs() / "datasets.yaml")
    rows = [
        {"name": name, "about": f"{values['title']}; `resvar data --dataset {name}` downloads it."}
        for name, values in official.items()
    ]
    about = (
        f"{SAMPLE_TRAINING_IMAGES:,} + {SAMPLE_TEST_IMAGES:,} images of CIFAR-10 in the package."
    )
    return [
        *rows,
        {"name": "sample", "about": f"{about} Says nothing about the paper."},
        {"name": "folder", "about": "Images in DIR/train/<class>/ and DIR/val/<class>/."},
    ]


def _depth_rows() -> list[dict[str, Any]]:
    cifar = [
        {"family": "cifar", "unit": u, "depths": _with_unit(PUBLISHED_CIFAR, u)} for u in UNITS
    ]
    imagenet = {depth: unit for depth, (unit, _) in IMAGENET.items()}
    others = [{"family": "imagenet", "unit": u, "depths": _with_unit(imagenet, u)} for u in UNITS]
    return cifar + others


def _with_unit(depths: Mapping[int, str], unit: str) -> list[int]:
    return [depth for depth, own in depths.items() if own == unit]


def _about(path: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    text = read_text(path, LARGEST_YAML, "configuration")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"\. (?=[A-Z])", comment)[0].rstrip(".") + "."


LISTS: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    "orderings": _ordering_rows,
    "protocols": _protocol_rows,
    "sweeps": _sweep_rows,
    "launchers": _launcher_rows,
    "datasets": _dataset_rows,
    "depths": _depth_rows,
}
UNITS = ("basic", "bottleneck")
LIMITS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "more than {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "less than {}",
}
JSON_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
}
