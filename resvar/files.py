"""Files: the shipped configurations, strict YAML, atomic writes.

This module imports nothing of resvar but the errors.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import yaml

from resvar.errors import UserError

LARGEST_YAML = 1_000_000
"""Bytes. A larger file is not a configuration."""

DEEPEST_YAML = 20
"""Levels of nesting. PyYAML's time grows with their square."""


def configs() -> Path:
    """The folder `configs`: inside the package in a wheel, beside it in a checkout."""
    return _shipped_folder("configs")


def examples() -> Path:
    """The folder `examples/`: inside the package in a wheel, beside it in a checkout."""
    return _shipped_folder("examples")


def _shipped_folder(name: str) -> Path:
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


def shipped(kind: str) -> dict[str, Path]:
    """Name → file of the shipped configurations of a kind: `variants`, `protocols` or `sweeps`."""
    return {path.stem: path for path in sorted((configs() / kind).glob("*.yaml"))}


# --- YAML -----------------------------------------------------------------------------------------


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


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Args:
        source: the name of the text in an error message.

    Raises:
        UserError: the text is not YAML, or contains tags, aliases or a duplicate key.
    """
    return copy.deepcopy(_parsed(text, source))


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


def read_text(path: Path, largest: int, kind: str) -> str:
    """The text of a file of at most `largest` bytes.

    Args:
        kind: the expected kind of file, for the error message.

    Raises:
        UserError: the file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        status = path.stat()  # once: a report reads tens of thousands of files
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe never ends
            raise UserError(f"{path}: this is no file.")
        if status.st_size > largest:
            raise UserError(f"{path}: over {largest:,} bytes, so this is no {kind}.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not a text file in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: this is no file name ({error}).") from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order, one line per key."""

    def one_line(value: Any) -> str:
        text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000)
        return text.removesuffix("...\n").strip()

    return "".join(f"{key}: {one_line(value)}\n" for key, value in values.items())


def refuse_newer(path: Path, written: object, known: int) -> None:
    """Refuse a file of a later version of resvar, which would otherwise look damaged.

    Args:
        written: the format number in the file; anything but an integer passes.
        known: the newest format that this version reads.

    Raises:
        UserError: the format is newer.
    """
    if type(written) is int and written > known:
        raise UserError(
            f"{path}: its format is {written} and this version of resvar reads {known}; update "
            "resvar."
        )


# --- atomic writes --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` on exit; readers see the old or the new content.

    On an error the temporary file is removed, and `path` stays as it was.

    Args:
        durable: flush to disk first; False for a file that may be lost in a power cut.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace a file by `text`, atomically."""
    with replacing(path, durable) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace a file by `value` as indented JSON, atomically. NaN, which JSON lacks, is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable)
