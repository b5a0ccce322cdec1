"""Clone your voice once, own it forever, use it anywhere.

    import afterwords as aw

    voice = aw.clone("me.wav", name="me", consent="self")
    aw.say("Hello", voice=voice).save("hello.wav")

Names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

__version__ = "0.1.0"
TYPE_CHECKING = False  # type checkers know this name; importing `typing` would double the import time

if TYPE_CHECKING:
    from afterwords import errors
    from afterwords.audio.audio import Audio
    from afterwords.client import AsyncClient, Client
    from afterwords.errors import AfterwordsError
    from afterwords.local import (
        clone,
        default_voice,
        export_voice,
        import_voice,
        inspect,
        remove,
        rename,
        say,
        stream,
        voices,
    )
    from afterwords.models import Job, Voice
    from afterwords.narration.narrator import narrate
    from afterwords.provenance import verify
    from afterwords.transfer import pull, push, sync

_MODULES = {
    "AfterwordsError": "afterwords.errors",
    "AsyncClient": "afterwords.client",
    "Audio": "afterwords.audio.audio",
    "Client": "afterwords.client",
    "Job": "afterwords.models",
    "Voice": "afterwords.models",
    "clone": "afterwords.local",
    "default_voice": "afterwords.local",
    "export_voice": "afterwords.local",
    "import_voice": "afterwords.local",
    "inspect": "afterwords.local",
    "narrate": "afterwords.narration.narrator",
    "pull": "afterwords.transfer",
    "push": "afterwords.transfer",
    "remove": "afterwords.local",
    "rename": "afterwords.local",
    "say": "afterwords.local",
    "stream": "afterwords.local",
    "sync": "afterwords.transfer",
    "verify": "afterwords.provenance",
    "voices": "afterwords.local",
}
__all__ = [
    "AfterwordsError",
    "AsyncClient",
    "Audio",
    "Client",
    "Job",
    "Voice",
    "__version__",
    "clone",
    "default_voice",
    "errors",
    "export_voice",
    "import_voice",
    "inspect",
    "narrate",
    "pull",
    "push",
    "remove",
    "rename",
    "say",
    "stream",
    "sync",
    "verify",
    "voices",
]


if not TYPE_CHECKING:  # otherwise type checkers would accept every misspelled name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name == "errors":
            return import_module("afterwords.errors")
        if name not in _MODULES:
            raise AttributeError(f"module 'afterwords' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
