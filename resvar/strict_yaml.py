"""Strict YAML: text to values and back, for settings, orderings, protocols, sweeps and launchers.

The dialect is the core schema of YAML 1.2 without tags and aliases: `0400`, `1_000`, `1:30`, `yes`
and `2016-03-16` are text. The only deviation is an integer with leading zeros, which the schema
reads as a number: parsers disagree on whether it is octal.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from resvar.errors import UserError, first_line, quoted
from resvar.files import read_text

LARGEST_YAML = 1_000_000
"""Bytes. A larger file is not a configuration."""

DEEPEST_YAML = 20
"""Levels of nesting. PyYAML's time grows with their square."""

LONGEST_NUMBER = 100
"""Characters. Python's time to read an integer grows with their square."""


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
        raise UserError(f"{source}: expected a mapping of names to values, such as 'depth: 110'.")
    if strange := [key for key in value if not isinstance(key, str)]:
        raise UserError(f"{source}: the key {quoted(strange[0])} is not a name; put it in quotes.")
    return value


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Args:
        source: the name of the text in an error message.

    Raises:
        UserError: the text is not YAML, or contains a tag, an alias, a duplicate key or a number
            of more than `LONGEST_NUMBER` characters.
    """
    return copy.deepcopy(_parsed(text, source))


def whole_number(text: str) -> int | None:
    """The number that 1 to 18 digits 0 to 9 write; None for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def spelling_advice(value: object, kind: type | None) -> str:
    """`; write 400` for text such as `0400` that others read as a number or boolean, else `""`.

    For the end of a sentence that rejects the text.

    Args:
        kind: the expected type: int, float or bool; None: any other.
    """
    if not isinstance(value, str) or len(value) > LONGEST_NUMBER:
        return ""
    word = value.strip().lower()
    if kind is bool and word in _BOOLEANS:
        return f"; write {_BOOLEANS[word]}"
    if kind in (int, float) and any(character.isdecimal() for character in word):
        for read in (int, partial(int, base=0), kind):
            with suppress(ValueError):
                return f"; write {read(word)}"
    return ""


def to_yaml(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order, one line per key."""

    def one_line(value: Any) -> str:
        text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000)
        return text.removesuffix("...\n").strip()

    return "".join(f"{key}: {one_line(value)}\n" for key, value in values.items())


# --- the dialect ----------------------------------------------------------------------------------

_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Turns text into events; this module decides what they mean."""

_INFINITY = {
    sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")
}
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **_INFINITY,
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_LEADING_ZEROS = re.compile(r"[-+]?0[0-9]+")


_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "y", "on"), "true"),
    **dict.fromkeys(("false", "no", "n", "off"), "false"),
}
"""Booleans in any notation, in lower case."""


@lru_cache(maxsize=64)
def _parsed(text: str, source: str) -> Any:
    """Cached: a report on many runs reads the same protocol and variants for each."""
    try:
        events = yaml.parse(text, Loader=_Parser)
        nodes = (event for event in events if isinstance(event, yaml.NodeEvent))
        values = [_Composer(source, events).value(node) for node in islice(nodes, 2)]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: text that is not UTF-8
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{source}{where}: this is not valid YAML: {problem}.") from error
    if len(values) > 1:
        raise UserError(f"{source}: this is not valid YAML: it has more than one document.")
    return values[0] if values else None


class _Composer:
    """Values from the events of a YAML text."""

    def __init__(self, source: str, events: Iterator[Any]) -> None:
        self.source = source
        self.events = events

    def value(self, event: Any, depth: int = 0) -> Any:
        """The value that begins with `event`; consumes its events.

        Args:
            depth: number of enclosing collections.
        """
        if event.anchor is not None:  # of an alias too
            raise self._refusal(event, "anchors and aliases are not allowed here")
        if event.tag is not None:
            raise self._refusal(event, f"tags such as {quoted(event.tag)} are not allowed here")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event) if event.implicit[0] else event.value
        if depth == DEEPEST_YAML:
            raise self._refusal(event, "nested too deeply for a configuration")
        if isinstance(event, yaml.SequenceStartEvent):
            return [self.value(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]
        return self._mapping(depth + 1)

    def _mapping(self, depth: int) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        written = set()
        for event in self._until(yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refusal(event, "a list or a mapping cannot be a name")
            key = self.value(event)
            if event.value in written:
                raise self._refusal(
                    event, f"this is not valid YAML: the key {quoted(event.value)} occurs twice"
                )
            written.add(event.value)
            mapping[key] = self.value(next(self.events), depth)
        return mapping

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        """The first event of each item of a collection, or of each key."""
        while not isinstance(event := next(self.events), end):
            yield event

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in "+-.0123456789":
            return text
        kind = int if _INTEGER.fullmatch(text) else float if _FLOAT.fullmatch(text) else None
        if kind is None:
            return text
        if len(text) > LONGEST_NUMBER:
            raise self._refusal(event, f"a number of {len(text):,} characters is too long")
        return int(text, base=0) if kind is int else float(text)

    def _refusal(self, event: Any, reason: str) -> UserError:
        return UserError(f"{self.source}, line {event.start_mark.line + 1}: {reason}.")


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or `_parsed` would read as something else."""


for _tag, _pattern in (("int", _INTEGER), ("int", _LEADING_ZEROS), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), list("-+.0123456789")
    )
