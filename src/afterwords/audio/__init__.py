"""Sound: read, check, write, play and measure recordings.

`audio` holds samples, `decoding` reads files, `wav` validates untrusted WAV files, `writer` and `encoders` write them,
`output` decides where to, `devices` plays and records, `analysis` measures. Names load when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not needed to load nothing

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio

__all__ = ["Audio"]


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name

    def __getattr__(name: str) -> object:
        """Load numpy only when samples are needed: `--help` imports this package too."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from afterwords.audio.audio import Audio

        return Audio
