"""For those who build on afterwords: what their tests need.

- `EngineContract`: the contract that every engine keeps, as tests to inherit.
- `RunningServer`: the real server in a thread, with a tone for a voice.
- `FaultyServer`, `Fault`, `Seen`: a proxy in front of a server that fails when it is told to.

The fixtures of `afterwords.testing.plugin` are there wherever pytest and afterwords are installed. Names load when
first used, so that a pytest run which needs none of them pays for none.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in the package: `typing` is not needed to load nothing

if TYPE_CHECKING:
    from afterwords.testing.engine_contract import EngineContract
    from afterwords.testing.faults import Fault, FaultyServer, Seen
    from afterwords.testing.running import RunningServer

_HOMES = {
    "EngineContract": "afterwords.testing.engine_contract",
    "Fault": "afterwords.testing.faults",
    "FaultyServer": "afterwords.testing.faults",
    "RunningServer": "afterwords.testing.running",
    "Seen": "afterwords.testing.faults",
}
__all__ = ["EngineContract", "Fault", "FaultyServer", "RunningServer", "Seen"]


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
