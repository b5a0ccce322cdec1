"""What was given can't be used: recordings, texts, names, options, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from afterwords.errors.root import AfterwordsError, quoted


class InvalidInputError(AfterwordsError):
    """What was given can't be used."""

    code = "invalid_input"
    http_status = 422
    exit_code = 5


class RecordingError(InvalidInputError):
    """A recording can't be used."""

    code = "invalid_audio"


class RecordingWarning(UserWarning):
    """A recording was taken, but something about it should be known, such as that its file is damaged."""


class UnsupportedAudioError(RecordingError):
    """No decoder knows the file, or the codec of the sound in it."""

    code = "unsupported_audio"

    def __init__(self, source: str, *, codec: str | None = None) -> None:
        if codec is None:
            super().__init__(
                f"{source} is not audio that any decoder here knows.",
                hint="give a wav, flac, mp3, ogg, opus, m4a, aac or webm file.",
            )
        else:
            super().__init__(
                f"{source} holds sound, but in {codec}, which can't be decoded here.",
                hint="convert it to wav, flac, mp3 or m4a with the program that made it, and give that file.",
            )


class DamagedAudioError(RecordingError):
    """The file is of a known format, but nothing of its sound can be read."""

    code = "damaged_audio"

    def __init__(self, source: str) -> None:
        super().__init__(
            f"{source} is damaged or incomplete: none of its sound can be read.",
            hint="copy or download it again; if it was just recorded, let the program finish saving it.",
        )


class NoAudioError(RecordingError):
    """The file is known but holds no sound: an empty file, or a container without an audio track."""

    code = "empty_data"

    def __init__(self, source: str) -> None:
        super().__init__(f"{source} holds no audio.", hint="record it again, or give another file.")


class ReferenceTooShortError(RecordingError):
    code = "too_short"

    def __init__(self, source: str, *, duration_s: float, minimum_s: float) -> None:
        super().__init__(
            f"{source} lasts {duration_s:.2f} s, but a reference must last at least {minimum_s:g} s.",
            hint="record a longer sample, or join clips into one.",
        )


class ReferenceTooLongError(RecordingError):
    code = "too_long"

    def __init__(self, source: str, *, duration_s: float, maximum_s: float) -> None:
        super().__init__(
            f"{source} lasts {duration_s:.2f} s, but a reference may last at most {maximum_s:g} s.",
            hint="cut it to the part where the voice is clearest.",
        )


class FileTooLargeError(RecordingError):
    code = "file_too_large"

    def __init__(self, source: str, *, size_bytes: int, maximum_bytes: int) -> None:
        super().__init__(
            f"{source} has {size_bytes:,} bytes, but at most {maximum_bytes:,} are taken.",
            hint="cut the recording, or save it as 16-bit mono.",
        )


class SilentAudioError(RecordingError):
    code = "silent_audio"

    def __init__(self, source: str, *, peak_db: float) -> None:
        super().__init__(
            f"{source} is silent: its sound peaks at {peak_db:.0f} dBFS once any constant offset is removed.",
            hint="check the microphone and record again.",
        )


class NonFiniteAudioError(RecordingError):
    code = "non_finite_audio"

    def __init__(self, source: str) -> None:
        super().__init__(
            f"{source} holds samples that are not numbers (NaN or infinity).",
            hint="export it again as 16-bit PCM.",
        )


class UnvoicedReferenceError(RecordingError):
    """Too little of the recording is a voice for an engine to learn from."""

    code = "no_voice"

    def __init__(self, source: str, *, voiced_s: float, minimum_s: float) -> None:
        super().__init__(
            f"{source} holds {voiced_s:.1f} s of voiced speech, but {minimum_s:g} s are needed.",
            hint="record at least 10 s of one person speaking, near the microphone and without music.",
        )


class PoorRecordingError(RecordingError):
    """A recording is graded F: a voice can be made from it, but it would not be worth the time."""

    code = "poor_recording"

    def __init__(self, source: str, *, reason: str, advice: str) -> None:
        super().__init__(
            f"{source} is graded F for cloning: {reason}",
            hint=f"{advice or 'record again'}; or clone it all the same with --anyway (anyway=True in Python).",
        )


class MalformedWavError(RecordingError):
    """The file is a WAV, but its structure is wrong."""

    code = "malformed_wav"

    def __init__(self, source: str, problem: str = "its chunks are out of order or cut") -> None:
        super().__init__(
            f"{source} is not a well-formed WAV file: {problem}.", hint="export it again as a 16-bit PCM WAV."
        )


class NotWavError(MalformedWavError):
    code = "not_wav"

    def __init__(self, source: str, *, found: str) -> None:
        super().__init__(source, f"it begins as {found}, not RIFF/WAVE")


class MissingFormatError(MalformedWavError):
    code = "no_fmt"

    def __init__(self, source: str) -> None:
        super().__init__(source, "it has no fmt chunk")


class TruncatedWavError(MalformedWavError):
    code = "truncated"

    def __init__(self, source: str, *, declared_bytes: int | None, present_bytes: int) -> None:
        if declared_bytes is None:
            super().__init__(source, "it ends before its sound begins")
        else:
            super().__init__(source, f"it declares {declared_bytes:,} bytes of sound and holds {present_bytes:,}")


class EmptyDataError(MalformedWavError):
    code = "empty_data"

    def __init__(self, source: str) -> None:
        super().__init__(source, "its data chunk declares no sound")


class TooManyChunksError(MalformedWavError):
    code = "too_many_chunks"

    def __init__(self, source: str, *, maximum: int) -> None:
        super().__init__(source, f"it has more than {maximum} chunks")


class BadChannelsError(MalformedWavError):
    code = "bad_channels"

    def __init__(self, source: str, *, channels: int) -> None:
        super().__init__(source, f"it declares {channels:,} channels, and 1 or 2 are taken")


class BadSampleRateError(MalformedWavError):
    code = "bad_sample_rate"

    def __init__(self, source: str, *, sample_rate: int, minimum: int, maximum: int) -> None:
        RecordingError.__init__(  # not of WAV files alone
            self,
            f"{source} has a sample rate of {sample_rate:,} Hz, and {minimum:,} to {maximum:,} Hz are taken.",
            hint="save it at 44,100 or 48,000 Hz, for example with `ffmpeg -i FILE -ar 48000 NEW.wav`.",
        )


class BadBitsError(MalformedWavError):
    code = "bad_bits"

    def __init__(self, source: str, *, bits: int) -> None:
        super().__init__(source, f"it declares {bits} bits a sample, and 8, 16, 24 or 32 are taken")


class BadBlockAlignError(MalformedWavError):
    code = "bad_block_align"

    def __init__(self, source: str, *, block_align: int, expected: int) -> None:
        super().__init__(source, f"it declares {block_align} bytes a frame, and its format needs {expected}")


class UnsupportedEncodingError(MalformedWavError):
    code = "unsupported_encoding"

    def __init__(self, source: str, *, encoding: str) -> None:
        super().__init__(source, f"its sound is encoded as {encoding}, and PCM or 32-bit float is taken")


class TextWarning(UserWarning):
    """A text is spoken without some of its words. The message never repeats the text."""


class TextError(InvalidInputError):
    """A text can't be spoken. The message never repeats the text."""

    code = "invalid_text"


class EmptyTextError(TextError):
    code = "empty_text"

    def __init__(self) -> None:
        super().__init__("The text holds nothing that can be spoken.", hint="give at least one letter or digit.")


class UnspeakableTextError(TextError):
    """Every word of a text is in a script that the backend can't read."""

    code = "unspeakable_text"

    def __init__(self, backend: str) -> None:
        super().__init__(
            f"The backend {backend} can't read the script that the text is written in.",
            hint="choose the language of the text, and a backend that speaks it, for example "
            "--lang ru --backend qwen3-1.7b; `afterwords backends` lists them.",
        )


class ControlCharacterError(TextError):
    code = "control_character"

    def __init__(self, *, codepoint: int, position: int) -> None:
        super().__init__(
            f"The text holds the control character U+{codepoint:04X} at position {position}; "
            "of those, only blanks (tabs, line ends, page breaks) are taken.",
            hint="remove it; text copied from a terminal often carries some.",
        )


class InvalidUnicodeError(TextError):
    code = "invalid_unicode"

    def __init__(self, *, position: int | None = None) -> None:
        where = "" if position is None else f" at position {position}"
        super().__init__(f"The text is not valid Unicode{where}.", hint="save or send the text as UTF-8.")


class TextTooLongError(TextError):
    code = "text_too_long"

    def __init__(self, *, length: int, maximum: int) -> None:
        super().__init__(
            f"The text has {length:,} characters, and at most {maximum:,} are taken at once.",
            hint="split it and speak the parts one by one.",
        )


class UnsupportedLangError(InvalidInputError):
    code = "unsupported_lang"

    def __init__(
        self,
        lang: str | None,
        *,
        supported: Iterable[str],
        backend: str = "",
        others: Sequence[str] = (),
        unavailable: Sequence[str] = (),
    ) -> None:
        who = f"The backend {backend}" if backend else "afterwords"
        spoken = ", ".join(sorted(supported))
        if others:
            hint = f"use --backend {others[0]}, which speaks it."
        elif unavailable:
            names = " and ".join(unavailable[:2])
            hint = f"no backend that runs here speaks it; {names} would: `afterwords backends` shows what is missing."
        else:
            hint = f"choose one of: {spoken}."
        super().__init__(
            f"{who} does not speak {'that language' if lang is None else quoted(lang)}; it speaks {spoken}.", hint=hint
        )


class InvalidBackendError(InvalidInputError):
    code = "invalid_backend"

    def __init__(self, backend: str | None, *, offered: Iterable[str]) -> None:
        names = ", ".join(offered) or "none"
        which = "such backend" if backend is None else f"backend {quoted(backend)}"
        super().__init__(f"There is no {which} here; offered: {names}.", hint="`afterwords backends` lists them.")


class InvalidNameError(InvalidInputError):
    code = "invalid_name"

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"A voice can't have that name: {problem}.", hint="use 1 to 200 letters, digits, spaces or punctuation."
        )


class InvalidOptionError(InvalidInputError):
    code = "invalid_option"

    def __init__(self, option: str, *, value: object, allowed: str) -> None:
        super().__init__(f"{option} is {quoted(value)}, and must be {allowed}.", hint=f"give {option} as {allowed}.")


class ConsentRequiredError(InvalidInputError):
    code = "consent_required"

    def __init__(self) -> None:
        super().__init__(
            "Whose voice this is, and that they agree, has not been stated.",
            hint="add --consent self (it is your own voice), granted (the speaker agreed), public-domain or synthetic.",
        )


class VoiceRequiredError(InvalidInputError):
    code = "voice_required"
    exit_code = 2

    def __init__(self, *, names: Sequence[str]) -> None:
        if names:
            super().__init__(
                f"There are {len(names)} voices and none was named.",
                hint=f"add --voice NAME ({', '.join(names[:5])}), "
                "or choose one for good with `afterwords voices default NAME`.",
            )
        else:
            super().__init__(
                "There is no voice yet.", hint="make one: afterwords clone me.wav --name me (or try `afterwords demo`)."
            )


class VoiceExistsError(InvalidInputError):
    code = "voice_exists"
    http_status = 409

    def __init__(self, name: str, *, where: str = "`afterwords clone --replace`") -> None:
        super().__init__(
            f"There is already another voice named {quoted(name)}.",
            hint=f"choose another name, or let {where} take its place.",
        )


class UnreadableFileError(InvalidInputError):
    code = "unreadable_file"

    def __init__(self, path: Path | str, *, why: str, hint: str = "check the path and its permissions.") -> None:
        super().__init__(f"{path} can't be read: {why}.", hint=hint)


class InvalidBackupError(InvalidInputError):
    code = "invalid_backup"

    def __init__(self, path: Path | str, *, why: str) -> None:
        super().__init__(
            f"{str(path)!a} can't be restored: {why}.", hint="use another backup; nothing was changed here."
        )


class InvalidConfigError(InvalidInputError):
    """`config.toml` holds a mistake."""

    code = "invalid_config"

    def __init__(self, path: Path | str, *, why: str, hint: str) -> None:
        super().__init__(f"There is a mistake in {path}: {why}.", hint=hint)


class UnknownSettingWarning(UserWarning):
    """A variable of the environment is named as a setting of afterwords and is none; it may be misspelled."""


class UnwritableOutputError(InvalidInputError):
    code = "unwritable_output"

    def __init__(
        self, path: Path | str, *, why: str, hint: str = "name a file in a folder that exists and is yours."
    ) -> None:
        super().__init__(f"{path} can't be written: {why}.", hint=hint)


class UnmarkableFormatError(InvalidInputError):
    """A file format is not known, by its name or its ending."""

    code = "invalid_format"

    def __init__(self, given: str, *, formats: Iterable[str]) -> None:
        names = ", ".join(formats)
        super().__init__(
            f"{quoted(given)} is not a format that can be written; known: {names}.", hint="add --format wav."
        )
