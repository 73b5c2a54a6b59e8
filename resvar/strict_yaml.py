"""Strict YAML: text to values and back.

Settings, orderings, protocols, sweeps and launcher files are read and written here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from resvar.errors import UserError
from resvar.files import read_text

LARGEST_YAML = 1_000_000
"""Bytes. A larger file is not a configuration."""

DEEPEST_YAML = 20
"""Levels of nesting. PyYAML's time grows with their square."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing or too large, or not a YAML mapping in UTF-8.
    """
    return parse_mapping(read_text(path, LARGEST_YAML, "configuration"), str(path))


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in an error message.

    Raises:
        UserError: the text is not YAML, or not a mapping whose keys are names.
    """
    value = parse_yaml(text, source)
    if not isinstance(value, dict):
        raise UserError(f"{source}: a mapping of names to values is needed, such as 'depth: 110'.")
    if strange := [key for key in value if not isinstance(key, str)]:
        raise UserError(f"{source}: the key {strange[0]!r} is no name; put it in quotes.")
    return value


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Args:
        source: the name of the text in an error message.

    Raises:
        UserError: the text is not YAML, or contains tags, aliases or a duplicate key.
    """
    return copy.deepcopy(_parsed(text, source))


def to_yaml(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order, one line per key."""

    def one_line(value: Any) -> str:
        text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000)
        return text.removesuffix("...\n").strip()

    return "".join(f"{key}: {one_line(value)}\n" for key, value in values.items())


# --- the dialect ----------------------------------------------------------------------------------


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # not a name; the loader itself refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_StrictLoader` would read as something else."""


# YAML 1.1, which PyYAML implements, requires a dot in a float; people write 1e-4.
for _either in (_StrictLoader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


@lru_cache(maxsize=64)
def _parsed(text: str, source: str) -> Any:
    """Cached: a report on many runs reads the same protocol and variants for each."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_StrictLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise UserError(f"{source}, line {line}: nested too deeply for a configuration.")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(f"{source}, line {line}: anchors and aliases are not allowed here.")
            if (tag := getattr(event, "tag", None)) is not None:
                raise UserError(
                    f"{source}, line {line}: tags such as '{tag}' are not allowed here."
                )
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{where}: this is not valid YAML: {problem}.") from error
