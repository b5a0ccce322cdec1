# ruff: noqa: B018
"""Misspelled names that mypy must reject: an unneeded ignore fails the run (warn_unused_ignores).

Nothing imports this file; mypy checks it with the tests.
"""

from __future__ import annotations

import afterwords as aw
import afterwords.client
import afterwords.server
import afterwords.server.dispatch
import afterwords.testing

aw.voces  # type: ignore[attr-defined]
aw.sya("Hello")  # type: ignore[attr-defined]
afterwords.client.Cleint  # type: ignore[attr-defined]
afterwords.server.create_ap  # type: ignore[attr-defined]
afterwords.server.dispatch.InProcesDispatcher  # type: ignore[attr-defined]
afterwords.testing.RuningServer  # type: ignore[attr-defined]
