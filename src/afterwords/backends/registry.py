"""Which engines there are, which backend to use, and the loaded engines of this process.

Engines are found by the entry point group `afterwords.engines`. A plug-in that fails to load is listed with
the reason and hides no other. `tone` is offered only to those who name it in `AFTERWORDS_BACKENDS`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from afterwords.backends.base import Available, Engine, Unavailable
from afterwords.config import Config, load_config
from afterwords.errors import BackendUnavailableError, InvalidBackendError, UnsupportedLangError
from afterwords.install import pip_install
from afterwords.telemetry import turn_off_telemetry

GROUP: Final = "afterwords.engines"
PREFERENCE: Final = ("qwen3-1.7b", "qwen3-0.6b", "lite")
"""What `auto` takes first; other backends follow in order of their names."""
HIDDEN: Final = frozenset({"tone"})


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend and whether it can run here. `engine` is None where the plug-in could not be loaded.

    Where several engines offer it, this is the fittest of them; among equals, the first by the name of its entry point.
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
        """How well its engine suits this machine: the larger, the better."""
        if isinstance(self.state, Available):
            return 2 if self.state.is_slow else 3
        return 0 if self.state.is_foreign else 1

    @property
    def languages(self) -> frozenset[str]:
        return self.engine.languages(self.name) if self.engine else frozenset()


def backends(config: Config | None = None) -> list[Backend]:
    """All backends that are offered here, best first, whether or not they can run."""
    config = config or load_config()
    found: dict[str, Backend] = {}
    for backend in (backend for point in _entry_points() for backend in _backends_of(point)):
        if backend.name not in found or backend.fitness > found[backend.name].fitness:
            found[backend.name] = backend
    if config.backends is not None:
        return [found[name] for name in config.backends if name in found]
    rank = {name: place for place, name in enumerate(PREFERENCE)}
    names = sorted(found.keys() - HIDDEN, key=lambda name: (rank.get(name, len(rank)), name))
    return [found[name] for name in names]


def choose(name: str = "auto", *, lang: str | None = None, config: Config | None = None) -> Backend:
    """Choose the backend that shall speak.

    Args:
        name: of a backend, or "auto" for the first that can run here and speaks `lang`.
        lang: two letters; None asks for no language.

    Raises:
        InvalidBackendError: no backend of that name is offered.
        BackendUnavailableError: it, or with "auto" every one, can't run here.
        UnsupportedLangError: it, or with "auto" every one that can run, does not speak the language.
    """
    offered = backends(config)
    if name == "auto":
        wanted = [backend for backend in offered if backend.name not in HIDDEN or len(offered) == 1]
    else:
        wanted = [backend for backend in offered if backend.name == name]
        if not wanted:
            raise InvalidBackendError(name, offered=[backend.name for backend in offered])
    usable = sorted((backend for backend in wanted if backend.is_available), key=lambda backend: backend.is_slow)
    if not usable:
        state = wanted[0].state if wanted else _nothing()
        assert isinstance(state, Unavailable)
        raise BackendUnavailableError(wanted[0].name if wanted else name, reason=state.reason, fix=state.fix)
    speaks = [backend for backend in usable if lang is None or lang in backend.languages]
    if not speaks:
        others = [other for other in offered if lang in other.languages]
        raise UnsupportedLangError(
            str(lang),
            supported=usable[0].languages,
            backend=usable[0].name,
            others=[other.name for other in others if other.is_available],
            unavailable=[other.name for other in others if not other.is_available],
        )
    return speaks[0]


def engine_for(backend: Backend) -> Engine:
    """The engine of an available backend; one instance a process, shared by all its backends."""
    if isinstance(backend.state, Unavailable):
        raise BackendUnavailableError(backend.name, reason=backend.state.reason, fix=backend.state.fix)
    assert backend.engine is not None, "only what did not load has no engine, and that is unavailable"
    return backend.engine


def _nothing() -> Unavailable:
    return Unavailable(
        "no installed engine offers a backend that is wanted",
        f"{pip_install('lite')}; if AFTERWORDS_BACKENDS is set, it must name what `afterwords backends` lists",
    )


def _entry_points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _backends_of(point: EntryPoint) -> list[Backend]:
    try:
        engine = _instance(point)
        state = engine.availability()
    except Exception as error:  # noqa: BLE001 - a plug-in may fail in any way, and must not take the others down
        reason = f"its plug-in could not be loaded ({type(error).__name__}: {error})"
        return [Backend(point.name, point.name, None, Unavailable(reason, f"reinstall or remove {_origin(point)}"))]
    return [Backend(name, engine.name, engine, state) for name in engine.backends]


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


_instances_lock = threading.Lock()


def _instance(point: EntryPoint) -> Engine:
    with _instances_lock:
        return _make(point)


@cache
def _make(point: EntryPoint) -> Engine:
    turn_off_telemetry()
    engine: Engine = point.load()()
    return engine
