"""Writing sound while it arrives: to a file that appears only when it is whole, or straight into a pipe.

Every format and every way to save goes through `AudioWriter`; `encoders` knows the formats, `destination` the places.
Callers find it in `audio`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from afterwords.audio.encoders import make_encoder
from afterwords.audio.output import format_of, open_destination, parse_format, storing_at
from afterwords.audio.wav import Samples
from afterwords.audio.wav_chunks import INFO_IDS
from afterwords.errors import InvalidOptionError, NonFiniteAudioError
from afterwords.models import SpeechFormat


class AudioWriter:
    """Write mono sound chunk by chunk; use it in a `with` block.

    A file is written under another name beside its own (`….part`), readable by its owner alone, and takes its name
    when the block ends well, with the permissions that the umask leaves; otherwise it is removed, and a file that was
    there before is kept. One that is replaced passes its permissions on. A pipe or a device gets each chunk at once;
    what was sent can't be taken back.

    Args:
        target: a path, or an open binary stream, which stays open.
        format: one of `SpeechFormat`; None takes it from the ending of the path.
        sample_rate: of the samples, in Hz. An encoder that does not take that rate gets the next higher one.
        tags: texts under the names of `wavchunks.INFO_IDS`; pcm carries none.

    Raises:
        UnmarkableFormatError: the format is not known.
        InvalidOptionError: a tag or the sample rate can't be written.
        UnwritableOutputError: on entering, before any work: the folder is missing or closed to writing; later: the
            write failed.
        StorageFullError: the disk is full.
        NonFiniteAudioError: samples that are NaN or infinite.
        BrokenPipeError: the reader of a pipe has gone.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        *,
        format: SpeechFormat | str | None = None,
        sample_rate: int,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if format is None:
            self.format = format_of(target) if isinstance(target, Path) else SpeechFormat.WAV
        else:
            self.format = parse_format(format)
        if not 0 < sample_rate < 2**31:
            raise InvalidOptionError("sample_rate", value=sample_rate, allowed="a positive number of Hz")
        self._tags = _clean_tags(tags or {})
        self._target = target
        self._sample_rate = sample_rate
        self._n_frames = 0

    @property
    def duration_s(self) -> float:
        """Seconds of sound written so far."""
        return self._n_frames / self._sample_rate

    def __enter__(self) -> Self:
        self._output = open_destination(self._target)
        try:
            with storing_at(self._target):
                self._encoder = make_encoder(
                    self._output.file, format=self.format, sample_rate=self._sample_rate, tags=self._tags
                )
        except BaseException:
            self._output.discard()
            raise
        return self

    def write(self, samples: Samples) -> None:
        """Add samples of shape (n_samples,), float32 in [-1, 1]."""
        if not np.isfinite(samples).all():
            raise NonFiniteAudioError("the audio")
        with storing_at(self._target):
            self._encoder.write(samples)
            self._output.send()
        self._n_frames += len(samples)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with storing_at(self._target):
                    self._encoder.finish()
                    self._output.commit()
        finally:  # after a commit there is nothing left to take back
            self._encoder.abandon()
            self._output.discard()


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without what no container can hold: NUL, and halves of characters."""
    for name in tags:
        if name not in INFO_IDS:
            raise InvalidOptionError("tags", value=name, allowed="named " + ", ".join(INFO_IDS))
    clean = {name: text.replace("\0", "").encode("utf-8", "replace").decode() for name, text in tags.items()}
    return {name: text for name, text in clean.items() if text}
