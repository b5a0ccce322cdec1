"""Find engines by the entry points `afterwords.engines`, choose a backend, and share the engines of this process.

A plug-in that fails to load is listed with the reason. `tone` is listed only if `AFTERWORDS_BACKENDS` names it.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from afterwords.backends.base import Available, Engine, Unavailable
from afterwords.config import Config, load_config
from afterwords.errors import BackendUnavailableError, InvalidInputError, UnsupportedLangError, pip_install
from afterwords.network import turn_off_telemetry

GROUP: Final = "afterwords.engines"
PREFERENCE: Final = ("qwen3-1.7b", "qwen3-0.6b", "pocket", "lite")
"""The first choices of `auto`; other backends follow by name."""
HIDDEN: Final = frozenset({"tone"})
_NO_ENGINE: Final = Unavailable(
    "no installed engine has a requested backend",
    f"{pip_install('lite')}; if AFTERWORDS_BACKENDS is set, it must name backends that `afterwords backends` lists",
)
_instances_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend and whether it can run here. `engine` is None if the plug-in failed to load.

    If several engines offer a backend, the fittest one has it; among equals, the first by entry point name.
    """

    name: str
    engine_name: str
    engine: Engine | None
    state: Available | Unavailable

    @property
    def is_available(self) -> bool:
        return isinstance(self.state, Available)

    @property
    def is_slow(self) -> bool:
        return isinstance(self.state, Available) and self.state.is_slow

    @property
    def fitness(self) -> int:
        """Return how well the engine suits this machine; larger is better."""
        if isinstance(self.state, Available):
            return 2 if self.state.is_slow else 3
        return 0 if self.state.is_foreign else 1

    @property
    def languages(self) -> frozenset[str]:
        return self.engine.languages(self.name) if self.engine else frozenset()


def backends(config: Config | None = None) -> list[Backend]:
    """Return all backends, best first, whether or not they can run here."""
    config = config or load_config()
    found: dict[str, Backend] = {}
    for point in _entry_points(tuple(sys.path)):
        try:
            with _instances_lock:
                engine = _instance(point)
            state = engine.availability()
        except Exception as error:  # noqa: BLE001 - a plug-in may fail in any way
            reason = f"its plug-in could not be loaded ({type(error).__name__}: {error})"
            package = point.dist.name if point.dist else point.value
            broken = Unavailable(reason, f"reinstall or remove {package}")
            offered = [Backend(point.name, point.name, None, broken)]
        else:
            offered = [Backend(name, engine.name, engine, state) for name in engine.backends]
        for backend in offered:
            if backend.name not in found or backend.fitness > found[backend.name].fitness:
                found[backend.name] = backend
    if config.backends is not None:
        return [found[name] for name in config.backends if name in found]
    rank = {name: place for place, name in enumerate(PREFERENCE)}
    names = sorted(found.keys() - HIDDEN, key=lambda name: (rank.get(name, len(rank)), name))
    return [found[name] for name in names]


def choose(name: str = "auto", *, lang: str | None = None, config: Config | None = None) -> Backend:
    """Choose a backend.

    Args:
        name: Name of a backend, or "auto" for the best one that can run here and speaks `lang`.
        lang: Two-letter language code; None: any.

    Raises:
        InvalidInputError: No backend has this name.
        BackendUnavailableError: The backend (with "auto", each one) can't run here.
        UnsupportedLangError: The backend (with "auto", each one that can run) doesn't speak the language.
    """
    offered = backends(config)
    if name == "auto":
        wanted = [backend for backend in offered if backend.name not in HIDDEN or len(offered) == 1]
    else:
        wanted = [backend for backend in offered if backend.name == name]
        if not wanted:
            names = ", ".join(backend.name for backend in offered) or "none"
            raise InvalidInputError(f"There is no backend '{name}'; available: {names}.", code="invalid_backend")
    usable = sorted((backend for backend in wanted if backend.is_available), key=lambda backend: backend.is_slow)
    if not usable:
        state = wanted[0].state if wanted else _NO_ENGINE
        assert isinstance(state, Unavailable)
        refused = wanted[0].name if wanted else name
        raise BackendUnavailableError(f"The backend {refused} can't run here: {state.reason}.", hint=state.fix)
    speaks = [backend for backend in usable if lang is None or lang in backend.languages]
    if not speaks:
        others = [other for other in offered if lang in other.languages]
        raise UnsupportedLangError.for_lang(
            str(lang),
            supported=usable[0].languages,
            backend=usable[0].name,
            others=[other.name for other in others if other.is_available],
            unavailable=[other.name for other in others if not other.is_available],
        )
    return speaks[0]


def engine_for(backend: Backend) -> Engine:
    """Return the engine of an available backend: one instance per process, shared by its backends."""
    if isinstance(state := backend.state, Unavailable):
        raise BackendUnavailableError(f"The backend {backend.name} can't run here: {state.reason}.", hint=state.fix)
    assert backend.engine is not None, "a backend without an engine is unavailable"
    return backend.engine


@cache
def _entry_points(path: tuple[str, ...]) -> list[EntryPoint]:  # noqa: ARG001 - where `entry_points` looks
    """Return the plug-ins by name; looking for them reads the metadata of every installed package, for 20 ms."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


@cache
def _instance(point: EntryPoint) -> Engine:
    turn_off_telemetry()
    engine: Engine = point.load()()
    return engine
