"""Test cloning and speaking on this machine with the tone engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import afterwords as aw
from afterwords import local, provenance
from afterwords.audio.audio import decode
from afterwords.audio.effects import FADE_S
from afterwords.backends.base import Reference
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER, ToneEngine
from afterwords.client.files import read_source
from afterwords.errors import (
    AfterwordsError,
    ConsentRequiredError,
    FileError,
    InvalidInputError,
    InvalidOptionError,
    RecordingError,
    RecordingWarning,
    StreamConsumedError,
    SynthesisError,
    TextError,
    TextWarning,
    UnavailableError,
    UnsupportedLangError,
    VoiceExistsError,
    VoiceNotFoundError,
    pip_install,
)
from afterwords.models import LexiconEntry, SpeechTask
from afterwords.text import SENTENCE_PAUSE_S
from tests.conftest import READER, clipped
from tests.error_codes import has_code

pytestmark = pytest.mark.usefixtures("tone")


def clone(name: str = "me", **options: object) -> aw.Voice:
    return aw.clone(READER, name=name, consent="self", **options)  # type: ignore[arg-type]


def test_clone_stores_recording_consent_and_seal() -> None:
    voice = clone()
    library = local.library()
    original = library.original_path(voice)
    assert original is not None
    assert original.read_bytes() == READER.read_bytes()
    assert voice.consent is not None
    assert voice.consent.kind == "self"
    assert provenance.verify_seal(voice)
    assert voice.reference
    assert 5 <= voice.reference.duration_s <= 15


def test_bytes_and_open_files_clone_like_a_path() -> None:
    by_path = clone("path")
    by_bytes = aw.clone(READER.read_bytes(), name="bytes", consent="self")
    by_file = aw.clone(BytesIO(READER.read_bytes()), name="file", consent="self")
    assert by_path.ref_sha256 == by_bytes.ref_sha256 == by_file.ref_sha256


def test_written_file_is_read_from_its_start() -> None:
    file = BytesIO()
    file.write(READER.read_bytes())
    by_file = aw.clone(file, name="file", consent="self")
    assert by_file.reference == aw.clone(READER, name="path", consent="self").reference
    assert read_source(file) == READER.read_bytes()


def test_open_file_is_read_from_its_position(tmp_path: Path) -> None:
    file = BytesIO(b"header" + READER.read_bytes())
    file.seek(len(b"header"))
    assert (
        aw.clone(file, name="file", consent="self").reference == aw.clone(READER, name="path", consent="self").reference
    )
    with pytest.raises(RecordingError, check=has_code("empty_data")):
        aw.clone(BytesIO(), name="empty", consent="self")


def test_file_opened_as_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "me.wav"
    path.write_text("text")
    with path.open() as file, pytest.raises(FileError, match="open as text") as caught:
        aw.clone(file, name="me", consent="self")  # type: ignore[arg-type]
    assert "'rb'" in caught.value.hint


def test_unusable_home_names_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AFTERWORDS_HOME", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(tmp_path / "file" / "home")
    with pytest.raises(AfterwordsError) as caught:
        aw.clone(READER, name="me", consent="self")
    assert "AFTERWORDS_HOME" in caught.value.hint


def test_error_prints_name_unchanged() -> None:
    for name in ("Émile", "名前", "O'Brien", "a\\b"):
        aw.clone(READER, name=name, consent="self")
        with pytest.raises(VoiceExistsError, match=re.escape(f"named '{name}'")):
            aw.clone(READER, name=name, consent="self")
    with pytest.raises(VoiceNotFoundError, match=r"no voice '\\u202eme\\x1b'"):
        aw.say("Hello.", voice="\u202eme\x1b")


def test_damaged_recording_is_cloned_with_a_warning() -> None:
    cut = READER.read_bytes()[:600_000]

    with pytest.warns(aw.errors.RecordingWarning, match="at least 6.0 s of 24.7 s"):
        aw.clone(cut, name="me", consent="self")
    cloned = local.make_voice(cut, name="me", consent="self", replace=True)

    assert "damaged or incomplete" in cloned.notices[0]


def test_grade_f_is_refused_before_preparing(tmp_path: Path) -> None:
    file = clipped(tmp_path / "clipped.wav")
    steps: list[str] = []

    with pytest.raises(
        aw.errors.RecordingError, match=r"clipped\.wav is graded F for cloning: .* are clipped"
    ) as refused:
        aw.clone(file, name="me", consent="self", progress=lambda _, step: steps.append(step))

    assert steps == ["reading"]
    assert "anyway=True" in refused.value.hint
    assert aw.voices() == []
    with pytest.warns(aw.errors.RecordingWarning, match="The recording is graded F"):
        voice = aw.clone(file, name="me", consent="self", anyway=True)
    assert voice.reference
    assert voice.reference.grade == "F"


def test_consent_is_required() -> None:
    with pytest.raises(ConsentRequiredError):
        aw.clone(READER, name="me")
    with pytest.raises(InvalidOptionError, match="consent"):
        aw.clone(READER, name="me", consent="whatever")  # type: ignore[arg-type]
    assert aw.voices() == []


def test_name_in_use_is_refused_first() -> None:
    clone()
    message: list[str] = []
    with pytest.raises(VoiceExistsError):
        aw.clone(READER, name="me", consent="self", progress=lambda _, step: message.append(step))
    assert message == []


def test_replace_leaves_one_voice(tmp_path: Path) -> None:
    first = clone()
    other = tmp_path / "other.wav"
    audio = aw.Audio(np.ascontiguousarray(decode(READER).samples[: 16_000 * 9]), 16_000)
    second = aw.clone(audio.save(other), name="me", consent="self", replace=True)
    assert [voice.voice_id for voice in aw.voices()] == [second.voice_id]
    assert first.ref_sha256 != second.ref_sha256


def test_short_recording_leaves_no_files(home: Path, tmp_path: Path) -> None:
    short = aw.Audio(decode(READER).samples[: 16_000 * 3], 16_000).save(tmp_path / "short.wav")
    with pytest.raises(RecordingError, match=r"3\.00 s", check=has_code("too_short")):
        aw.clone(short, name="me", consent="self")
    assert aw.voices() == []
    assert not [path for path in home.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.usefixtures("whisper")
def test_recording_is_transcribed_with_whisper() -> None:
    voice = clone()
    assert voice.ref_text is not None
    assert "amiable" in voice.ref_text.lower()


@pytest.mark.usefixtures("whisper")
def test_doubtful_transcript_is_dropped(german: aw.Audio) -> None:
    with pytest.warns(aw.errors.RecordingWarning, match=r"recognized poorly.*no transcript was kept.*--lang de"):
        voice = aw.clone(german.to_bytes(), name="me", consent="self")

    assert voice.ref_text is None


@pytest.mark.usefixtures("whisper")
def test_given_transcript_is_cut_with_window() -> None:
    text = (READER.parent / "reader.txt").read_text("utf-8")
    voice = clone(text=text)
    assert voice.ref_text
    assert len(voice.ref_text) < 0.8 * len(text)
    assert voice.ref_text.split()[-1] in text


def test_transcript_that_cannot_be_cut_is_dropped() -> None:
    text = (READER.parent / "reader.txt").read_text("utf-8")
    cloned = local.make_voice(READER, name="me", consent="self", text=text)
    assert cloned.voice.ref_text is None
    assert any("left out" in notice for notice in cloned.notices)


@pytest.mark.usefixtures("whisper")
def test_transcript_can_be_corrected() -> None:
    cloned = local.make_voice(READER, name="me", consent="self", confirm=lambda transcript: f"{transcript.text} Amen.")
    assert str(cloned.voice.ref_text).endswith("Amen.")


def test_say_returns_marked_speech(tmp_path: Path) -> None:
    voice = clone()
    audio = aw.say("Hello there", voice=voice)
    assert audio.sample_rate == SAMPLE_RATE
    assert audio.duration_s == pytest.approx(SECONDS_PER_CHARACTER * len("Hello there"))
    mark = provenance.verify(audio.save(tmp_path / "hello.flac"))
    assert mark is not None
    assert (mark.backend, mark.voice_name, mark.voice_id) == ("tone", "me", voice.voice_id)


def test_only_voice_needs_no_name() -> None:
    clone()
    assert aw.say("Hello").duration_s > 0
    clone("you")
    with pytest.raises(InvalidInputError, check=has_code("voice_required")):
        aw.say("Hello")
    local.library().set_default("you")
    assert aw.stream("Hello").voice.name == "you"


def test_unknown_voice_suggests_nearest_name() -> None:
    clone("grandmother")
    with pytest.raises(VoiceNotFoundError) as refused:
        aw.say("Hello", voice="grandmohter")
    assert "grandmother" in refused.value.hint


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_keeps_the_pitch(speed: float) -> None:
    clone()
    text = "the speed of this is changed"
    plain, changed = aw.say(text), aw.say(text, speed=speed)
    assert changed.duration_s == pytest.approx(plain.duration_s / speed, rel=0.02)
    peaks = [np.abs(np.fft.rfft(a.samples)).argmax() / a.duration_s for a in (plain, changed)]
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


@pytest.mark.parametrize("option", [{"speed": 0.1}, {"speed": float("nan")}, {"seed": -1}])
def test_option_out_of_range_is_refused(option: dict[str, float]) -> None:
    clone()
    with pytest.raises(InvalidOptionError):
        aw.say("Hello", **option)  # type: ignore[arg-type]


def test_unsupported_language_is_refused() -> None:
    clone()
    with pytest.raises(UnsupportedLangError):
        aw.say("Hello", lang="tlh")


def test_stream_yields_same_speech_in_chunks() -> None:
    clone()
    text = "this is long enough for several chunks"
    speech = aw.stream(text)
    chunks = [chunk.samples for chunk in speech]
    assert len(chunks) > 3
    np.testing.assert_array_equal(np.concatenate(chunks), aw.say(text).samples)
    assert speech.result is not None
    assert speech.result.duration_s == pytest.approx(SECONDS_PER_CHARACTER * len(text))


def test_voice_is_renamed_made_default_and_removed() -> None:
    voice = clone()
    assert aw.default_voice() is None
    assert aw.rename(voice, "you").name == "you"
    assert aw.default_voice("you") == aw.default_voice() == aw.voices()[0]
    aw.remove("you")
    assert aw.voices() == []
    with pytest.raises(VoiceNotFoundError):
        aw.remove(voice)


def test_voice_is_exported_and_imported(tmp_path: Path) -> None:
    voice = clone()
    path = aw.export_voice("me", tmp_path / "me.voice")
    assert path.stat().st_mode & 0o777 == 0o600
    aw.remove(voice)
    assert aw.import_voice(path) == voice
    with path.open("rb") as file:
        assert aw.import_voice(file) == voice
    other = aw.clone(READER.read_bytes() + b"more", name="you", consent="self")
    aw.remove(voice)
    with pytest.raises(VoiceExistsError):
        aw.import_voice(path.read_bytes(), name=other.name)
    assert aw.import_voice(str(path), name=other.name, replace=True).voice_id == voice.voice_id


def test_inspect_grades_and_stores_nothing() -> None:
    report = aw.inspect(READER.read_bytes())
    assert report.grade in "AB"
    assert {"length", "noise"} <= {finding.measure for finding in report.findings}
    assert aw.voices() == []


def test_verify_accepts_path_and_string(tmp_path: Path) -> None:
    clone()
    path = aw.say("Marked.").save(tmp_path / "marked.mp3")
    mark = aw.verify(str(path))
    assert mark is not None
    assert (mark.voice_name, mark.backend) == ("me", "tone")


def test_stream_is_saved_to_file(tmp_path: Path) -> None:
    clone()
    path = aw.stream("Into a file.").save(tmp_path / "speech.flac")
    np.testing.assert_allclose(decode(path).samples, aw.say("Into a file.").samples, atol=1e-4)  # 16 bits


def test_live_text_is_spoken_before_it_ends() -> None:
    clone()
    written: list[str] = []

    def write() -> Iterator[str]:
        for word in ("Good ", "morning ", "to ", "you. ", "It ", "is ", "late."):
            written.append(word)
            yield word

    speech = aw.stream(write())
    chunks = iter(speech)
    first = next(chunks)

    assert "".join(written) == "Good morning to you. It "
    samples = np.concatenate([first.samples, *(chunk.samples for chunk in chunks)])
    n_spoken = round(len("Good morning to you. It is late.") * SECONDS_PER_CHARACTER * SAMPLE_RATE)
    assert len(samples) == n_spoken + round((SENTENCE_PAUSE_S + 2 * FADE_S) * SAMPLE_RATE)
    steepest = 0.2 * 2 * np.pi * 800 / SAMPLE_RATE  # of the highest tone
    assert np.abs(np.diff(samples, append=0)).max() <= steepest
    assert speech.result is not None
    assert speech.result.duration_s == pytest.approx(len(samples) / SAMPLE_RATE)


def test_markup_is_spoken_and_times_match_the_text() -> None:
    clone()
    text = "\ufeffGood day.\r\n[pause 1s] And <good> night."
    plain_s = sum(aw.say(part).duration_s for part in ("Good day.\n", " And <good> night."))
    audio = aw.say(text, timestamps=True)
    assert audio.duration_s == pytest.approx(plain_s + 1 + FADE_S, abs=1e-3)
    assert audio.alignment is not None
    assert "".join(audio.alignment.characters) == text
    day, night = (next(w for w in audio.alignment.words if w.text == word) for word in ("day", "night"))
    assert text[night.start :] == "night."
    assert night.start_s - day.end_s > 1
    slow = aw.say("<speak><prosody rate='50%'>Good day.</prosody></speak>", speed=2)
    assert slow.duration_s == pytest.approx(aw.say("Good day.").duration_s, abs=1e-3)


def test_markup_of_live_text_is_spoken() -> None:
    clone()
    spoken = aw.say(["Good morning to you. [pau", "se 2s] It ", "is late.\n\n[pause 1s]"])
    assert np.diff(np.flatnonzero(spoken.samples)).max() > 2 * SAMPLE_RATE
    assert not spoken.samples[-SAMPLE_RATE // 2 :].any()


def test_lexicon_is_spoken_and_times_match_the_text() -> None:
    clone()
    local.library().set_lexicon("me", [LexiconEntry(word="W3C", alias="World Wide Web", ipa="w")])
    audio = aw.say("The W3C met.", timestamps=True)
    assert audio.duration_s == aw.say("The World Wide Web met.").duration_s
    assert audio.alignment is not None
    assert [word.text for word in audio.alignment.words] == ["The", "W3C", "met"]
    local.library().set_lexicon("me", [LexiconEntry(word="W3C", ipa="w")])
    with pytest.warns(TextWarning, match="does not read IPA"):
        assert aw.say("The W3C met.").duration_s == aw.say("The ABC met.").duration_s
    assert aw.say(["The W3C ", "met."]).duration_s > 0


def test_unread_markup_warns() -> None:
    clone()
    with pytest.warns(TextWarning, match="spoken as text: a pause needs a duration"):
        speech = aw.stream("Good day. [pause] And good night.")
    assert len(speech.notices) == 1
    assert speech.audio().duration_s == aw.say("Good day. (pause) And good night.").duration_s


def test_live_text_without_words_is_refused() -> None:
    clone()
    with pytest.raises(TextError, check=has_code("empty_text")):
        aw.say(["...", " !"])


def test_unspeakable_part_of_live_text_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    clone()
    speech = aw.stream(["Good morning to you.\n\n", "fault-unspoken-one fault-unspoken-two\n\n", "And good night."])

    with pytest.warns(TextWarning, match="leaves out words") as warned:
        audio = speech.audio()

    assert len(warned) == 1
    assert speech.left_out == ("fault-unspoken-one", "fault-unspoken-two")
    assert 2 < audio.duration_s < 2.4


@pytest.mark.parametrize("fault", ["fault-fail", "fault-error", "fault-memory"])
def test_engine_error_is_a_synthesis_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    clone()
    with pytest.raises(SynthesisError):
        aw.say(f"this text has the word {fault} in it")


def test_prompt_is_made_once_per_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    prepare = ToneEngine.prepare

    def counted(self: ToneEngine, reference: Reference, *rest: Any, **options: Any) -> bytes:
        made.append(prepare(self, reference, *rest, **options))
        return made[-1]

    # A patch, because nothing else shows how often an engine was called.
    monkeypatch.setattr(ToneEngine, "prepare", counted)
    clone("one")
    clone("two")
    aw.say("Hello", voice="two")
    assert len(made) == 1


def test_left_out_words_warn_without_naming_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    clone()
    with pytest.warns(TextWarning) as warned:
        speech = aw.stream("Hello fault-unspoken-Иван")
    assert speech.left_out == ("fault-unspoken-Иван",)
    assert "Иван" not in str(warned[0].message) + repr(speech)
    with pytest.raises(TextError, check=has_code("unspeakable_text")):
        aw.stream("fault-unspoken")


def test_damaged_prompt_is_made_again(home: Path) -> None:
    voice = clone()
    (prompt,) = (home / "voices" / voice.voice_id / "prompts").iterdir()
    prompt.write_bytes(b"damaged")
    assert aw.say("Hello").duration_s > 0
    assert prompt.read_bytes() != b"damaged"


def test_make_prompt_prepares_voice(home: Path) -> None:
    voice = clone()
    (prompt,) = (home / "voices" / voice.voice_id / "prompts").iterdir()
    prompt.unlink()
    assert not local.has_prompt(voice, "tone")
    local.make_prompt(voice, "tone")
    assert local.has_prompt(voice, "tone")
    assert prompt.exists()


def test_progress_runs_from_start_to_end() -> None:
    clone()
    message: list[float] = []
    aw.say("a text of some length, spoken in chunks", progress=lambda done, _: message.append(done))
    assert message == sorted(message)
    assert message[-1] == 1.0


def test_speech_is_iterated_once() -> None:
    clone()
    speech = aw.stream("a text of some length, spoken in chunks")
    done = speech.audio()
    assert done.duration_s > 0
    with pytest.raises(StreamConsumedError):
        speech.audio()
    assert speech.result is not None
    assert speech.result.duration_s == pytest.approx(done.duration_s)


def test_error_in_progress_callback_is_raised() -> None:
    clone()

    def fail(_fraction: float, _step: str) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        aw.say("Hello", progress=fail)


def test_engine_error_names_only_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    clone()
    with pytest.raises(SynthesisError) as failed:
        aw.say("this text has the word fault-error in it")
    assert "ValueError" in failed.value.message
    assert "unexpected failure" not in failed.value.message


def test_removed_voice_is_named() -> None:
    voice = clone()
    local.library().remove("me")
    with pytest.raises(VoiceNotFoundError, match="me"):
        aw.say("Hello", voice=voice)


# -- timestamps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_timestamps_follow_the_speed(speed: float) -> None:
    clone()
    speech = aw.say("Good morning, everyone.", speed=speed, timestamps=True)
    found = speech.alignment
    assert found is not None
    assert found.confidence == 1
    per_character = SECONDS_PER_CHARACTER / speed
    assert found.start_s == pytest.approx([at * per_character for at in range(len(found.characters))])
    assert found.end_s[-1] == pytest.approx(speech.duration_s)
    assert [(word.text, word.start_s) for word in found.words] == [
        ("Good", 0),
        ("morning", pytest.approx(5 * per_character)),
        ("everyone", pytest.approx(14 * per_character)),
    ]


def test_alignment_has_the_text_as_given() -> None:
    clone()
    text = "\ufeffOne\r\ntwo\u2029three"
    found = aw.say(text, timestamps=True).alignment
    assert found is not None
    assert "".join(found.characters) == text
    spoken_at = [word.start_s / SECONDS_PER_CHARACTER for word in found.words]  # in "One\ntwo\n\nthree"
    assert spoken_at == pytest.approx([0, 4, 9])


def test_speech_without_timestamps_has_no_alignment() -> None:
    clone()
    assert aw.say("Hello.").alignment is None


def test_timestamps_of_other_engines_need_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    clone()
    # Patched, because every engine that runs here reports its timing, and the tests have faster-whisper.
    monkeypatch.setattr(ToneEngine, "has_timing", False)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UnavailableError, check=has_code("timestamps_unavailable")) as caught:
        aw.stream("Hello.", timestamps=True)
    assert caught.value.http_status == 422
    assert caught.value.hint == pip_install("transcribe")


@pytest.mark.usefixtures("whisper")
def test_unrecognized_speech_has_no_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    clone()
    monkeypatch.setattr(ToneEngine, "has_timing", False)  # so that Whisper listens to the tone
    with pytest.raises(UnavailableError, check=has_code("timestamps_unavailable")):
        aw.say("Hello.", timestamps=True)


# -- takes ----------------------------------------------------------------------------------------------------


def test_take_speaks_for_its_emotion(tmp_path: Path) -> None:
    me = clone()
    audio = aw.Audio(np.ascontiguousarray(decode(READER).samples[: 16_000 * 9]), 16_000)
    happy = aw.clone(audio.save(tmp_path / "happy.wav"), name="me", emotion="Happy", consent="self")
    assert (happy.name, happy.family, happy.emotion) == ("me-happy", "me", "happy")
    with pytest.warns(TextWarning, match="tone keeps the timbre"):
        assert aw.stream("Hi.", voice="me", emotion="happy").voice.voice_id == happy.voice_id
    assert aw.stream("Hi.", voice="me").voice.voice_id == me.voice_id
    aw.rename("me", "my voice")  # the family remains
    with pytest.warns(TextWarning):
        assert aw.stream("Hi.", voice="my voice", emotion="happy").voice.voice_id == happy.voice_id
    bundle = aw.export_voice(happy, tmp_path / "happy.zip")
    aw.remove(happy)
    assert aw.import_voice(bundle).emotion == "happy"
    with pytest.warns(TextWarning):
        assert aw.stream("Hi.", voice="my voice", emotion="happy").voice.voice_id == happy.voice_id


def test_named_voice_decides_how_its_take_reads() -> None:
    me, happy = clone(), clone(emotion="happy", lang="de")
    for voice, alias in ((me, "World Wide Web"), (happy, "W")):
        local.library().set_lexicon(voice.voice_id, [LexiconEntry(word="W3C", alias=alias)])
    plain, tagged, chosen = (
        local.estimate(text, voice="me", emotion=emotion)
        for text, emotion in (("The W3C.", None), ("[happy]The W3C.", None), ("The W3C.", "happy"))
    )
    assert plain.lang == tagged.lang == chosen.lang == "en"
    assert plain.duration_s == tagged.duration_s == chosen.duration_s
    with pytest.warns(TextWarning):
        own = aw.say("The W3C.", voice=happy, lang="en")
    for text in ("The W3C.", ["The W3C."]):
        with pytest.warns(TextWarning):
            speech = aw.stream(text, voice="me", emotion="happy")
        assert "keeps the timbre" in speech.notices[0]
        assert speech.audio().duration_s > own.duration_s


def test_unknown_take_lists_the_others() -> None:
    clone()
    with pytest.raises(VoiceNotFoundError, match="no takes yet"):
        aw.say("Hi.", voice="me", emotion="sad")
    clone(emotion="happy")
    with pytest.raises(VoiceNotFoundError, match=r"no take for the emotion sad\. Its takes: happy") as caught:
        aw.say("Hi.", voice="me", emotion="sad")
    assert "--name me --emotion sad" in caught.value.hint


@pytest.mark.parametrize("emotion", ["", "two words", "pause", "voice", "x" * 31, "glück", "[happy]"])
def test_invalid_emotion_is_refused(emotion: str) -> None:
    clone()
    with pytest.raises(InvalidOptionError, match="emotion"):
        clone(emotion=emotion)
    assert [voice.name for voice in aw.voices()] == ["me"]


def test_take_of_another_speaker_is_doubted(tmp_path: Path) -> None:
    clone()
    higher = aw.Audio(decode(READER).samples, 24_000)  # he speaks 1.5 times higher and faster
    with pytest.warns(RecordingWarning, match="another person than me: its similarity is 0.[56]"):
        aw.clone(higher.save(tmp_path / "other.wav"), name="me", emotion="happy", consent="self")


def test_take_needs_its_voice() -> None:
    with pytest.raises(VoiceNotFoundError):
        clone(emotion="happy")


def test_take_of_an_emotion_is_unique() -> None:
    clone()
    clone(emotion="happy")
    with pytest.raises(VoiceExistsError):
        clone(emotion="happy")
    assert clone(emotion="happy", replace=True).emotion == "happy"


def test_tag_in_text_speaks_with_a_take(monkeypatch: pytest.MonkeyPatch) -> None:
    me, happy = clone(), clone(emotion="happy")
    spoken: list[tuple[str, str]] = []
    synthesize = ToneEngine.synthesize

    def record(self: ToneEngine, task: SpeechTask) -> Any:
        spoken.append((task.text.strip(), task.voice_id))
        return synthesize(self, task)

    monkeypatch.setattr(ToneEngine, "synthesize", record)
    text = "Good. [happy] We won! [neutral] Bye. [sad] No."
    with pytest.warns(TextWarning):
        speech = aw.stream(text, voice="me", timestamps=True)
    audio = speech.audio()
    assert spoken == [("Good.", me.voice_id), ("We won!", happy.voice_id), ("Bye. [sad] No.", me.voice_id)]
    assert ["no take of that name" in speech.notices[0], "keeps the timbre" in speech.notices[1]] == [True, True]
    assert audio.alignment is not None
    times = {word.text: word for word in audio.alignment.words}
    assert times["Good"].end_s <= times["We"].start_s < times["won"].end_s <= times["Bye"].start_s


def test_take_of_an_engine_that_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clone()
    clone(emotion="happy")
    monkeypatch.setattr(ToneEngine, "continues_recording", True, raising=False)
    assert aw.stream("[happy] We won!", voice="me").notices == ()
