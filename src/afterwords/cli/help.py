"""The look of `--help`: flags without a type, and examples below the options."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


def _without_flag_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class HelpCommand(TyperCommand):
    """A command whose help shows no `<bool>` next to its flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))


class HelpGroup(TyperGroup):
    """A group of commands whose help shows no `<bool>` next to its flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))


def examples(*lines: str) -> str | None:
    """Return an epilog that shows example commands, one per line."""
    return "\n".join(("\b", "Examples:", *(f"  {escape(line)}" for line in lines))) if lines else None
