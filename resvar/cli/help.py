"""How commands print their help: metavars instead of type names, defaults in words."""

from __future__ import annotations

from typing import Any

import typer.core

HYPHEN = "\u2011"
"""A hyphen at which no line breaks."""


class PlainCommand(typer.core.TyperCommand):
    """A command whose help is the same with every version of Typer."""

    def get_help(self, ctx: Any) -> str:
        """The help; names with hyphens are not broken."""
        own, self.help = self.help, (self.help or "").replace("-", HYPHEN)
        try:
            return super().get_help(ctx).replace(HYPHEN, "-")
        finally:
            self.help = own

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(argument.metavar) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            if not getattr(param, "hidden", False):
                records[param.param_type_name].append(
                    (_signature(param), _description(param).replace("-", HYPHEN))
                )
        for kind, rows in records.items():
            if rows:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(rows)


class PlainGroup(typer.core.TyperGroup):
    """A group of commands that shows the first sentence of each in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, (found.help or "").split("\n\n")[0])
                    for name, found in commands.items()
                    if found
                ]
            )


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
