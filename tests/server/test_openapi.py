"""The documentation of the API is that of the code: schema, pages and errors."""

from __future__ import annotations

import re
from pathlib import Path

from afterwords import errors
from afterwords.errors import AfterwordsError, ServiceError
from afterwords.server import create_app
from scripts.make_openapi import PAGE, document

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
KINDS = {errors.ServiceError, errors.BadRequestError, errors.LimitError, errors.ConflictError}
"""Classes that stand for several errors and are not raised themselves, or only as `internal_error`."""


def listed() -> set[str]:
    """The codes in the table of errors."""
    table = API.partition("## Errors")[2].partition("A failed job")[0]
    return {
        code for line in table.splitlines() if line.startswith("| ") for code in re.findall(r"`([a-z0-9_]+)`", line)
    }


def test_the_committed_schema_is_that_of_the_routes() -> None:
    assert PAGE.read_text("utf-8") == document(), "run `make openapi`"


def test_every_error_of_a_route_is_listed() -> None:
    described = re.findall(r"Codes: ([a-z0-9_, ]+)\.", str(create_app().openapi()))
    named = {code for codes in described for code in codes.split(", ")}
    assert named <= listed()


def test_every_error_of_the_service_is_listed() -> None:
    def below(kind: type[AfterwordsError]) -> set[type[AfterwordsError]]:
        return {kind, *(each for sub in kind.__subclasses__() for each in below(sub))}

    assert {kind.code for kind in below(ServiceError) - KINDS} <= listed()


def test_every_route_of_the_schema_is_on_the_page() -> None:
    for path, methods in create_app().openapi()["paths"].items():
        shown = re.sub(r"\{\w+\}", "{id}", path)
        assert shown in API, path
        assert all(f"`{method.upper()}" in API or f"{method.upper()}`" in API for method in methods)


def test_operators_routes_are_left_out_of_the_schema() -> None:
    assert not {"/healthz", "/readyz"} & set(create_app().openapi()["paths"])
