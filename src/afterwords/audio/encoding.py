"""How audio is encoded: `Encoding` describes it, `encoders` does it. Needs neither numpy nor libav."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from afterwords.errors import InvalidOptionError
from afterwords.models import SpeechFormat

MEDIA_TYPES: Final = {
    SpeechFormat.WAV: "audio/wav",
    SpeechFormat.MP3: "audio/mpeg",
    SpeechFormat.OPUS: "audio/ogg",
    SpeechFormat.WEBM: "audio/webm",
    SpeechFormat.AAC: "audio/aac",
    SpeechFormat.FLAC: "audio/flac",
    SpeechFormat.PCM: "audio/pcm",
    SpeechFormat.MULAW: "audio/basic",
    SpeechFormat.ALAW: "audio/x-alaw-basic",
}
UNTAGGED: Final = frozenset({SpeechFormat.AAC, SpeechFormat.PCM, SpeechFormat.MULAW, SpeechFormat.ALAW})
"""Formats that have no place for tags, and so none for the mark of synthetic speech."""
SAMPLE_RATES: Final = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Sample rates in Hz that can be chosen, where the format has them."""
_MPEG_RATES: Final = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES: Final = (8_000, 12_000, 16_000, 24_000, 48_000)
_RATES: Final = {
    SpeechFormat.MP3: _MPEG_RATES,
    SpeechFormat.AAC: _MPEG_RATES,
    SpeechFormat.OPUS: _OPUS_RATES,
    SpeechFormat.WEBM: _OPUS_RATES,
    SpeechFormat.MULAW: (8_000,),  # ITU-T G.711
    SpeechFormat.ALAW: (8_000,),
}
_BIT_RATES: Final = {
    SpeechFormat.MP3: range(32_000, 192_001),
    SpeechFormat.OPUS: range(32_000, 192_001),
    SpeechFormat.WEBM: range(32_000, 192_001),
}
_MPEG2_MAX: Final = 160_000
"""Highest bit rate of MP3 below 32 kHz. Source: ISO/IEC 13818-3."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The format of an audio file, its sample rate in Hz and its bit rate in bits per second.

    Attributes:
        sample_rate: None: that of the audio, or the next one that the format has.
        bit_rate: None: the default of the format.

    Raises:
        InvalidOptionError: The format has no such rate.
    """

    format: SpeechFormat
    sample_rate: int | None = None
    bit_rate: int | None = None

    def __post_init__(self) -> None:
        rates = [rate for rate in SAMPLE_RATES if rate in _RATES.get(self.format, SAMPLE_RATES)]
        if self.sample_rate is not None and self.sample_rate not in rates:
            allowed = f"one of {', '.join(f'{rate:,}' for rate in rates)} Hz for {self.format}"
            raise InvalidOptionError.for_option("sample_rate", value=self.sample_rate, allowed=allowed)
        if self.bit_rate is None:
            return
        bit_rates = _BIT_RATES.get(self.format, range(0))
        if self.format is SpeechFormat.MP3 and (self.sample_rate or SAMPLE_RATES[0]) < SAMPLE_RATES[4]:
            bit_rates = range(bit_rates.start, _MPEG2_MAX + 1)
        if self.bit_rate not in bit_rates:
            allowed = f"{bit_rates.start:,} to {bit_rates.stop - 1:,} bit/s" if bit_rates else "omitted"
            allowed += f" for {self.format}"
            raise InvalidOptionError.for_option("bit_rate", value=self.bit_rate, allowed=allowed)

    def __str__(self) -> str:
        """Return the whole description, as a key of a cache."""
        return f"{self.format}-{self.sample_rate or ''}-{self.bit_rate or ''}"

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.format]

    def rate_for(self, sample_rate: int) -> int:
        """Return the sample rate of the file for audio with a sample rate."""
        if self.sample_rate is not None:
            return self.sample_rate
        rates = _RATES.get(self.format, (sample_rate,))
        return min((rate for rate in rates if rate >= sample_rate), default=max(rates))
