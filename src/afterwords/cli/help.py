"""How `--help` looks: flags without a type, and examples under the options."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


class HelpCommand(TyperCommand):
    """A command whose help shows no `<bool>` next to its flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))


class HelpGroup(TyperGroup):
    """A group of commands, likewise."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))


def _without_flag_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def examples(*lines: str) -> str | None:
    """Return an epilog that shows calls, each in a line of its own."""
    return "\n".join(("\b", "Examples:", *(f"  {escape(line)}" for line in lines))) if lines else None
