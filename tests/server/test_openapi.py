"""The documentation of the API matches the code: schema, pages and errors."""

from __future__ import annotations

import re
from pathlib import Path

from afterwords.errors import AfterwordsError, NotFoundError, ServiceError
from afterwords.server import create_app
from scripts.make_openapi import PAGE, document

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
GENERAL = {"conflict", "limit_reached", "not_logged_in", "unknown_model"}
"""Codes that a server does not answer with: those of base classes, of the client and of `afterwords models`."""


def listed() -> set[str]:
    """Return the codes in the table of errors."""
    table = API.partition("## Errors")[2].partition("A failed job")[0]
    return {
        code for line in table.splitlines() if line.startswith("| ") for code in re.findall(r"`([a-z0-9_]+)`", line)
    }


def test_committed_schema_is_current() -> None:
    assert PAGE.read_text("utf-8") == document(), "run `make openapi`"


def test_every_error_of_a_route_is_in_the_docs() -> None:
    described = re.findall(r"Codes: ([a-z0-9_, ]+)\.", str(create_app().openapi()))
    named = {code for codes in described for code in codes.split(", ")}
    assert named <= listed()


def test_every_service_error_is_in_the_docs() -> None:
    def codes(kind: type[AfterwordsError]) -> set[str]:
        return {kind.code, *kind.codes, *(code for sub in kind.__subclasses__() for code in codes(sub))}

    assert (codes(ServiceError) | codes(NotFoundError)) - GENERAL <= listed()


def test_every_route_is_in_the_docs() -> None:
    for path, methods in create_app().openapi()["paths"].items():
        shown = re.sub(r"\{\w+\}", "{id}", path)
        assert shown in API, path
        assert all(f"`{method.upper()}" in API or f"{method.upper()}`" in API for method in methods)


def test_healthz_and_readyz_are_not_in_the_schema() -> None:
    assert not {"/healthz", "/readyz"} & set(create_app().openapi()["paths"])
