"""A network from other people's code: `MODULE:CALLABLE` or `FILE.py:CALLABLE`.

The code is imported and called, as Python would; nothing is unpickled here. What it prints goes to
stderr, so that our own output stays readable by machines.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import nn

from resvar.console import log
from resvar.errors import UserError, first_line, kind_and_text, nearest, quoted

FORM = "write MODULE:CALLABLE or FILE.py:CALLABLE, such as torchvision.models:resnet50"
OWN_MODULE = "resvar_identified"


def load_network(target: str, kwargs: str | None = None) -> nn.Module:
    """Import a module or file, call the callable, and return the network that it builds.

    Args:
        target: where the callable is; it may also be a network, or a class of networks.
        kwargs: its arguments, as `KEY=VALUE,…`, with values as in Python or YAML; `KEY=:NAME`
            means the object of this name in the same module.

    Raises:
        UserError: the code cannot be imported or called, or does not give a network.
    """
    source, _, name = target.rpartition(":")
    if not source or not name:
        raise UserError(f"{quoted(target)} does not say what to call; {FORM}.")
    log(f"Running the code of {target}")
    with _foreign(target):
        module = _imported(source)
        found = _attribute(module, name, source)
        arguments = _keyword_arguments(kwargs, module)
        if isinstance(found, nn.Module):
            if arguments:
                raise UserError(f"{target} is a network already and takes no --kwargs.")
            return found
        if not callable(found):
            raise UserError(f"{target} cannot be called: it is of type {type(found).__name__}.")
        _check_arguments(found, arguments, target)
        network = found(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{target} gives an object of type {type(network).__name__}, not a torch.nn.Module."
        )
    return network


@contextlib.contextmanager
def contained(target: str) -> Iterator[None]:
    """Run other people's code: its output goes to stderr, and it cannot end the program."""
    words = sys.argv
    sys.argv = words[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        code = 0 if error.code is None else error.code
        how = (
            f"with exit code {code}"
            if isinstance(code, int)
            else f"with the message {quoted(str(code))}"
        )
        raise UserError(f"{target} ended the program, {how}.") from error
    finally:
        sys.argv = words


@contextlib.contextmanager
def _foreign(target: str) -> Iterator[None]:
    """`contained`, for code whose failures are the user's."""
    try:
        with contained(target):
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{target} failed: {kind_and_text(error)}.") from error


def _imported(source: str) -> ModuleType:
    if source.endswith(".py") or "/" in source:
        return _imported_file(Path(source))
    if source.startswith("."):
        raise UserError(f"{quoted(source)} is a relative import; name the module in full.")
    with _first_on_path(Path.cwd()):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name is None or not (
                source == error.name or source.startswith(f"{error.name}.")
            ):
                raise
            raise UserError(f"there is no module {quoted(source)} here; {FORM}.") from error


def _imported_file(path: Path) -> ModuleType:
    """A file by itself, or, where it belongs to a package, as part of it: for relative imports."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    path = path.resolve()
    folder, name = path.parent, path.stem
    if (folder / "__init__.py").exists():
        while (folder / "__init__.py").exists():
            folder, name = folder.parent, f"{folder.name}.{name}"
        with _first_on_path(folder):
            return importlib.import_module(name)
    with _first_on_path(folder):
        spec = importlib.util.spec_from_file_location(OWN_MODULE, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{path} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[OWN_MODULE] = module  # dataclasses and pickle look themselves up there
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _attribute(module: ModuleType, dotted: str, source: str) -> Any:
    found: Any = module
    for name in dotted.split("."):
        if not hasattr(found, name):
            public = (word for word in dir(found) if not word.startswith("_"))
            hint = nearest(name, filter(lambda word: callable(getattr(found, word)), public)) or "."
            raise UserError(f"{source} has no {quoted(name)}{hint}")
        found = getattr(found, name)
    return found


def _keyword_arguments(text: str | None, module: ModuleType) -> dict[str, Any]:
    """`depth=110,widths=[16, 32]` → the values; a comma in brackets or quotes is the value's."""
    arguments = {}
    for part in _split_at_commas(text or ""):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key.isidentifier():
            raise UserError(f"--kwargs: {quoted(part)} is not of the form KEY=VALUE.")
        if value.startswith(":"):
            arguments[key] = _attribute(module, value[1:], "--kwargs: the module")
            continue
        try:
            arguments[key] = _value(value)
        except yaml.YAMLError as error:
            raise UserError(f"--kwargs: {key}={value} is not a value of Python or YAML.") from error
    return arguments


def _value(text: str) -> Any:
    """`None`, `(3, 4, 6, 3)` and `1e-3` as in Python; `null`, `true` and plain words as in YAML."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return yaml.safe_load(text)


def _split_at_commas(text: str) -> Iterator[str]:
    """The parts of `KEY=VALUE,…`; a comma within brackets or quotes does not end one."""
    depth, quote, part = 0, "", ""
    for character in text:
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        depth += 0 if quote else (character in "[{(") - (character in "]})")
        if character == "," and not depth and not quote:
            yield part
            part = ""
        else:
            part += character
    if text:
        yield part


def _check_arguments(call: Callable[..., Any], arguments: dict[str, Any], target: str) -> None:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        parameters = signature.parameters.values()
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in arguments
        ]
        if needed:
            asked = ",".join(f"{name}=…" for name in needed)
            words = "argument" if len(needed) == 1 else "arguments"
            raise UserError(
                f"{target} needs the {words} {', '.join(needed)}: use --kwargs {asked} (a value "
                ":NAME means the object of this name in the same module)."
            ) from error
        taken = ", ".join(signature.parameters) or "no arguments"
        raise UserError(f"{target}: {first_line(error)}; it takes {taken}.") from error
