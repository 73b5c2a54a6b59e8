"""How a command prints its help: metavars instead of type names, defaults in words."""

from __future__ import annotations

from typing import Any

import typer.core


class PlainCommand(typer.core.TyperCommand):
    """A command whose help is the same with every version of Typer."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(argument.metavar) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            if not getattr(param, "hidden", False):
                records[param.param_type_name].append((_signature(param), _description(param)))
        for kind, rows in records.items():
            if rows:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(rows)


def _signature(param: Any) -> str:
    """`--depth N`, `--baseline / --no-baseline`, `DIR…`."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        return f"{names} / {', '.join(param.secondary_opts)}"
    return names if param.is_flag else f"{names} {param.metavar}"


def _description(param: Any) -> str:
    text = param.help or ""
    silent = param.default in (None, False, ()) or "Default:" in text
    return text if silent or param.name == "help" else f"{text} Default: {_in_words(param)}."


def _in_words(param: Any) -> str:
    if param.default is True:
        return str(param.opts[0])
    return str(param.default)
