"""Write docs/openapi.yaml from the routes; `make openapi` calls it, and a test compares."""

from __future__ import annotations

from pathlib import Path

import yaml

from afterwords.server import create_app

PAGE = Path(__file__).parents[1] / "docs" / "openapi.yaml"


def document() -> str:
    """Return the OpenAPI document as YAML."""
    return yaml.safe_dump(create_app().openapi(), sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    PAGE.write_text(document(), "utf-8")
