"""The server of the plug-in for this package only, instead of the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afterwords.testing import RunningServer


@pytest.fixture(scope="package")
def afterwords_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("afterwords") / "home") as server:
        yield server
