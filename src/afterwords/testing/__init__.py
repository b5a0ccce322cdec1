"""Tools for the tests of programs and engines that build on afterwords.

- `EngineContract`, `DispatcherContract`: the contracts of engines and dispatchers, as tests to inherit.
- `RunningServer`: the real server in a thread, with a test tone for a voice.
- `FaultyTransport`, `Fault`: a transport for `Client` and `AsyncClient` that injects faults.

pytest loads the fixtures of `afterwords.testing.plugin` wherever afterwords is installed. Names are imported on first
use, so that a pytest run without them imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without the cost of importing `typing`

if TYPE_CHECKING:
    from afterwords.testing.dispatcher_contract import DispatcherContract
    from afterwords.testing.engine_contract import EngineContract
    from afterwords.testing.faults import Fault, FaultyTransport
    from afterwords.testing.running import RunningServer

_MODULES = {
    "DispatcherContract": "afterwords.testing.dispatcher_contract",
    "EngineContract": "afterwords.testing.engine_contract",
    "Fault": "afterwords.testing.faults",
    "FaultyTransport": "afterwords.testing.faults",
    "RunningServer": "afterwords.testing.running",
}
__all__ = ["DispatcherContract", "EngineContract", "Fault", "FaultyTransport", "RunningServer"]


if not TYPE_CHECKING:  # so that a type checker still finds misspelt names

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
