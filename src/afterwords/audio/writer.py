"""Write samples as they arrive, to a file that appears when it is complete, or to a pipe.

`encoders` has the formats, `output` the places to write to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from afterwords.audio.encoders import BookInfo, make_encoder
from afterwords.audio.encoding import Encoding
from afterwords.audio.output import format_of, open_destination, parse_format, translate_write_errors
from afterwords.audio.wav import Samples
from afterwords.audio.wav_chunks import INFO_IDS
from afterwords.errors import InvalidOptionError, RecordingError
from afterwords.models import SpeechFormat

if TYPE_CHECKING:
    import soxr


class AudioWriter:
    """Write mono audio chunk by chunk, in a `with` block.

    A file is written as `….part` in the same folder, readable by its owner only, and renamed when the block succeeds;
    otherwise the part is removed and an existing file stays. A new file gets the permissions of the umask, a replaced
    one keeps its own. A pipe or a device gets each chunk at once.

    Args:
        target: A path, or an open binary stream, which stays open.
        format: One of `SpeechFormat`, or an `Encoding`; None: by the extension of the path.
        sample_rate: Rate of the samples in Hz. They are resampled to the rate of the encoding; a format that doesn't
            have the rate uses the next higher one.
        tags: Texts by the names of `wav_chunks.INFO_IDS`; raw formats and aac have no tags.
        book: Makes the file an audiobook with chapters and a cover.

    Raises:
        InvalidInputError: The format is unknown.
        InvalidOptionError: A tag or the sample rate can't be written.
        FileError: On entering: the folder is missing or not writable. Later: a write failed.
        StorageFullError: The disk is full.
        RecordingError: Samples are NaN or infinite.
        BrokenPipeError: The reader of a pipe has closed it.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        *,
        format: Encoding | SpeechFormat | str | None = None,
        sample_rate: int,
        tags: Mapping[str, str] | None = None,
        book: BookInfo | None = None,
    ) -> None:
        if isinstance(format, Encoding):
            self._encoding = format
        elif format is not None:
            self._encoding = Encoding(parse_format(format))
        else:
            self._encoding = Encoding(format_of(target) if isinstance(target, Path) else SpeechFormat.WAV)
        if not 0 < sample_rate < 2**31:
            raise InvalidOptionError.for_option("sample_rate", value=sample_rate, allowed="a positive number of Hz")
        self._tags = {}
        for name, text in (tags or {}).items():
            if name not in INFO_IDS:
                raise InvalidOptionError.for_option("tags", value=name, allowed="named " + ", ".join(INFO_IDS))
            # No container can hold NUL or a lone surrogate.
            if clean := text.replace("\0", "").encode("utf-8", "replace").decode():
                self._tags[name] = clean
        self._book = book
        self._target = target
        self._sample_rate = sample_rate
        self._resampler: soxr.ResampleStream | None = None
        self._n_frames = 0

    @property
    def duration_s(self) -> float:
        """Seconds of audio written so far."""
        return self._n_frames / self._sample_rate

    def __enter__(self) -> Self:
        rate = self._encoding.rate_for(self._sample_rate)
        if rate != self._sample_rate:
            import soxr

            self._resampler = soxr.ResampleStream(self._sample_rate, rate, 1, dtype="float32")
        self._output = open_destination(self._target)
        try:
            with translate_write_errors(self._target):
                self._encoder = make_encoder(
                    self._output.file, self._encoding, sample_rate=rate, tags=self._tags, book=self._book
                )
        except BaseException:
            self._output.discard()
            raise
        return self

    def write(self, samples: Samples) -> None:
        """Write samples of shape (n_samples,), float32 in [-1, 1]."""
        if not np.isfinite(samples).all():
            raise RecordingError.non_finite("the audio")
        self._n_frames += len(samples)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        with translate_write_errors(self._target):
            self._encoder.write(samples)
            self._output.send()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with translate_write_errors(self._target):
                    if self._resampler is not None:
                        self._encoder.write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                    self._encoder.finish()
                    self._output.commit()
        finally:  # no effect after a commit
            self._encoder.abandon()
            self._output.discard()
