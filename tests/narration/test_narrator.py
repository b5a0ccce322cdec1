"""Test narration with the tone engine: the file, the cache of sentences, and what can go wrong."""

from __future__ import annotations

import re
import resource
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import av
import numpy as np
import pytest

import afterwords as aw
from afterwords import disk, local
from afterwords.audio.audio import decode
from afterwords.audio.loudness import LoudnessMeter, true_peak
from afterwords.backends.base import Chunk
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER, ToneEngine
from afterwords.errors import (
    FileError,
    InvalidInputError,
    InvalidOptionError,
    LibraryError,
    StorageFullError,
    SynthesisError,
    TextError,
    UnsupportedLangError,
    VoiceNotFoundError,
)
from afterwords.models import LexiconEntry, SpeechTask, Verification, Voice
from afterwords.narration.book import read_book
from afterwords.narration.script import (
    CHAPTER_PAUSE_S,
    HEADING_PAUSE_S,
    PARAGRAPH_PAUSE_S,
    SENTENCE_PAUSE_S,
    write_script,
)
from tests.backends.test_registry import install
from tests.conftest import READER
from tests.error_codes import has_code
from tests.narration.epubs import image, write_epub

pytestmark = pytest.mark.usefixtures("me")

TEXT = "# First chapter\n\nHello there, reader. How are you today?\n\n# Second chapter\n\nThe end of the story.\n"
SENTENCES = ["First chapter", "Hello there, reader.", "How are you today?", "Second chapter", "The end of the story."]
FADE_S = 0.005
CLONE = Path(__file__).parents[2] / "docs" / "media" / "clone.mp3"


def write(folder: Path, text: str = TEXT, name: str = "book.md") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def spoken_s(text: str) -> float:
    return SECONDS_PER_CHARACTER * len(text) + FADE_S


@pytest.fixture
def anna(me: Voice) -> Voice:
    aw.default_voice(me)
    return aw.clone(READER, name="anna", consent="self")


# -- the file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["m4b", "mp3", "flac", "opus", "wav"])
def test_book_has_chapters_cover_tags_and_mark(ending: str, tmp_path: Path) -> None:
    (tmp_path / "cover.jpg").write_bytes(image("jpeg"))
    out = tmp_path / f"out.{ending}"
    done = aw.narrate(write_epub(tmp_path / "b.epub"), out, cover=tmp_path / "cover.jpg")

    titles = ["First & foremost", "Second", "Later"]
    assert [title for title, _ in done.chapters] == titles
    with av.open(out) as file:
        assert file.duration is not None
        assert file.duration / 1e6 == pytest.approx(done.duration_s, abs=0.06)
        chapters = file.chapters()
        stream = file.streams.audio[0]
        tags = {name.lower(): value for name, value in (dict(file.metadata) | dict(stream.metadata)).items()}
        kinds = [video.metadata.get("comment") for video in file.streams.video]
        covers = [bytes(packet) for video in file.streams.video for packet in file.demux(video) if packet.size]
    assert tags["title"] == "The Book"
    assert tags["artist"] == "Ann Author, Bo Writer"
    assert ending == "wav" or tags["genre"] == "Audiobook"
    assert (tags.get("media_type") == "2") == (ending == "m4b")
    assert kinds == {"m4b": [None], "mp3": ["Cover (front)"], "flac": ["Cover (front)"]}.get(ending, [])
    assert covers == ([image("jpeg")] if ending in {"m4b", "mp3", "flac"} else [])
    if ending == "wav":
        assert (chapters, len(done.notices)) == ([], 1)
    else:
        assert [chapter["metadata"]["title"] for chapter in chapters] == titles
        starts = [chapter["start"] * float(chapter["time_base"] or 0) for chapter in chapters]
        assert starts == pytest.approx([start_s for _, start_s in done.chapters], abs=0.002)
    assert (done.notices != ()) == (ending in {"wav", "opus"})
    mark = aw.verify(out)
    assert mark is not None
    assert (mark.is_synthetic, mark.voice_name, mark.backend) == (True, "me", "tone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.epub", "cover.jpg", "home", out.name]


def test_sentences_are_joined_by_silence(tmp_path: Path) -> None:
    done = aw.narrate(write(tmp_path), tmp_path / "book.wav", srt=tmp_path / "b.srt", vtt=tmp_path / "b.vtt")

    pauses_s = [0, HEADING_PAUSE_S, SENTENCE_PAUSE_S, CHAPTER_PAUSE_S, HEADING_PAUSE_S]
    starts_s, end_s = [], 0.0
    for text, pause_s in zip(SENTENCES, pauses_s, strict=True):
        starts_s.append(end_s + pause_s)
        end_s = starts_s[-1] + spoken_s(text)
    assert done.duration_s == pytest.approx(end_s, abs=0.001)
    assert [title for title, _ in done.chapters] == ["First chapter", "Second chapter"]
    assert [start_s for _, start_s in done.chapters] == pytest.approx([0, starts_s[3]], abs=0.001)
    samples = decode(tmp_path / "book.wav").samples
    for text, start_s, next_s in zip(SENTENCES, starts_s, [*starts_s[1:], end_s], strict=True):
        start, end, following = (round(s * SAMPLE_RATE) for s in (start_s, start_s + spoken_s(text), next_s))
        assert np.abs(samples[start : start + 240]).max() > 0.01
        assert not samples[end + 2 : following - 2].any()
    shown = re.findall(r"(\d+):(\d+):(\d+),(\d+) --> ", (tmp_path / "b.srt").read_text())
    times_s = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in shown]
    assert times_s == pytest.approx(starts_s, abs=0.002)
    assert (tmp_path / "b.vtt").read_text().startswith("WEBVTT\n")


def test_pauses_add_up_to_a_minute_at_most(tmp_path: Path) -> None:
    script, _ = write_script(read_book(write(tmp_path, "One. " + "[pause 5s] " * 1000 + "two.", "b.txt")), {})
    assert [sentence.pause_s for sentence in script] == [0, 60]


def test_each_voice_has_the_wanted_loudness(anna: Voice, tmp_path: Path) -> None:
    text = "Narrator speaks for a while here.\n\nANNA: And I speak as long as that.\n"
    done = aw.narrate(write(tmp_path, text), tmp_path / "book.flac", cast={"ANNA": "anna"}, loudness=-24, speed=0.5)

    assert done.voices == ("me", "anna")
    audio = decode(tmp_path / "book.flac")
    edges = np.flatnonzero(np.diff(np.abs(audio.samples) > 1e-4, prepend=False, append=False))
    gap = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
    for part in (audio.samples[: gap[0]], audio.samples[gap[1] :]):
        meter = LoudnessMeter(audio.sample_rate)
        meter.add(part)
        assert meter.integrated() == pytest.approx(-24, abs=0.3)
        assert true_peak(part) < 10 ** (-1 / 20)


def test_speech_with_high_peaks_is_as_loud_as_asked(tmp_path: Path) -> None:
    def stop(fraction: float, step: str) -> None:
        if step == "leveling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aw.narrate(write(tmp_path, "One sentence."), tmp_path / "book.flac", progress=stop)
    (part,) = (tmp_path / "book.flac.sentences").glob("*.wav")
    decode(CLONE).save(part)  # its peaks are 20 dB above its loudness
    assert aw.narrate(tmp_path / "book.md", tmp_path / "book.flac").n_spoken == 0

    audio = decode(tmp_path / "book.flac")
    meter = LoudnessMeter(audio.sample_rate)
    meter.add(audio.samples)
    assert meter.integrated() == pytest.approx(-19, abs=0.2)
    assert 10 ** (-2.1 / 20) < true_peak(audio.samples) <= 10 ** (-1.9 / 20)


def test_loud_book_stays_below_the_peak_limit(tmp_path: Path) -> None:
    aw.narrate(write(tmp_path, "A sentence that is to be loud. " * 4), tmp_path / "book.mp3", loudness=-12)
    assert true_peak(decode(tmp_path / "book.mp3").samples) <= 10 ** (-1 / 20)


# -- voices ---------------------------------------------------------------------------------------------------


def test_tags_and_cast_choose_voices(anna: Voice, tmp_path: Path) -> None:
    text = (
        "Me here.\n\n[voice:anna] Anna speaks now.\n\nShe goes on.\n\n[voice:] Me again.\n\n"
        "BOB: Bob is Anna.\n\nMe at the end."
    )
    done = aw.narrate(write(tmp_path, text), tmp_path / "many.wav", cast={"BOB": "anna"})
    parts = ["Me here.", "Anna speaks now.", "She goes on.", "Me again.", "Bob is Anna.", "Me at the end."]
    assert done.n_sentences == len(parts)
    assert done.duration_s == pytest.approx(sum(map(spoken_s, parts)) + 5 * 0.7, abs=0.01)
    assert done.voices == ("me", "anna")


def test_emotion_chooses_the_take_of_the_voice(anna: Voice, tmp_path: Path) -> None:
    take = aw.clone(READER, name="anna", consent="self", emotion="happy")
    text = "Calm at first, as ever. [voice:anna][happy] Happy from now on.\n\nIn this paragraph, too."
    done = aw.narrate(write(tmp_path, text), tmp_path / "book.wav")
    assert (done.n_sentences, done.voices) == (3, ("me", take.name))
    with pytest.raises(VoiceNotFoundError, match="no take for the emotion happy"):
        aw.narrate(write(tmp_path, "Calm at first, as ever. [happy] Happy."), tmp_path / "book.wav")


def test_take_reads_the_lexicon_of_its_voice(anna: Voice, tmp_path: Path) -> None:
    local.library().set_lexicon("anna", [LexiconEntry(word="W3C", alias="World Wide Web Consortium")])
    aw.clone(READER, name="anna", consent="self", emotion="happy")
    done = aw.narrate(write(tmp_path, "[voice:anna][happy] I like W3C."), tmp_path / "book.flac")
    assert done.duration_s == pytest.approx(spoken_s("I like World Wide Web Consortium."), abs=0.01)
    assert done.notices == ("tone keeps the timbre of a take, but not its emotion.",)


@pytest.mark.parametrize("by_cast", [True, False])
def test_unknown_voice_names_the_nearest(anna: Voice, tmp_path: Path, by_cast: bool) -> None:
    text = "Hello.\n\nBOB: Hi.\n" if by_cast else "Hello. [voice:ana] Hi."
    with pytest.raises(VoiceNotFoundError, match="ana") as caught:
        aw.narrate(write(tmp_path, text), tmp_path / "book.wav", cast={"BOB": "ana"} if by_cast else None)
    assert "anna" in f"{caught.value} {caught.value.hint}"
    assert not list(tmp_path.glob("book.*part"))


def test_book_states_its_language(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLangError, match="nl"):
        aw.narrate(write(tmp_path, f"---\nlang: nl\n---\n{TEXT}"), tmp_path / "book.wav")
    aw.narrate(tmp_path / "book.md", tmp_path / "book.wav", lang="en")


# -- the cache ------------------------------------------------------------------------------------------------


def test_failed_narration_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, out = write(tmp_path), tmp_path / "book.wav"
    out.write_bytes(b"old")
    steps: list[float] = []

    def stop_at_second_chapter(fraction: float, step: str) -> None:
        steps.append(fraction)
        if step.startswith("chapter 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aw.narrate(book, out, progress=stop_at_second_chapter)
    assert out.read_bytes() == b"old"
    parts = sorted((tmp_path / "book.wav.sentences").iterdir())
    n_kept = len(parts) - 1  # without the lock
    assert 3 <= n_kept <= 5  # sentences of the second chapter may be spoken ahead
    assert {path.stat().st_mode & 0o777 for path in parts} == {0o600}
    assert (tmp_path / "book.wav.sentences").stat().st_mode & 0o777 == 0o700
    assert all(aw.verify(path) for path in parts if path.suffix == ".wav")

    (tmp_path / "book.wav.sentences" / "mine.wav").write_bytes(b"other")
    done = aw.narrate(book, out)
    assert (done.n_spoken, done.n_sentences) == (5 - n_kept, 5)
    assert steps == sorted(steps)
    assert [path.name for path in (tmp_path / "book.wav.sentences").iterdir()] == ["mine.wav"]


@pytest.mark.usefixtures("whisper")
def test_verification_outlives_an_interruption(tmp_path: Path) -> None:
    book, out, report = write(tmp_path, "Hello there.\n\nGood bye.", "b.txt"), tmp_path / "b.wav", tmp_path / "r.json"

    def stop(fraction: float, step: str) -> None:
        if step == "leveling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aw.narrate(book, out, verify=True, progress=stop)
    first, _ = (tmp_path / "b.wav.sentences").glob("*.json")
    first.write_bytes(first.read_bytes()[:-20])
    done = aw.narrate(book, out, verify=True, report=report)
    assert (done.n_spoken, done.n_sentences) == (1, 2), "the one whose verification is damaged"
    assert done.verification == Verification.model_validate_json(report.read_bytes())
    assert not done.verification.has_passed, "a tone says nothing"
    assert [sentence.text for sentence in done.verification.sentences] == ["Hello there.", "Good bye."]
    starts_s = [sentence.start_s for sentence in done.verification.sentences]
    assert starts_s == pytest.approx([0, spoken_s("Hello there.") + PARAGRAPH_PAUSE_S], abs=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "b.wav", "home", "r.json"]
    with pytest.raises(InvalidOptionError, match="report"):
        aw.narrate(book, out, report=report)
    with pytest.raises(FileError, match="another output"):
        aw.narrate(book, out, verify=True, report=out)


def test_changed_text_and_options_are_spoken_again(tmp_path: Path) -> None:
    def leave_parts(fraction: float, step: str) -> None:
        if step == "writing the file":
            raise KeyboardInterrupt

    def n_spoken(text: str = TEXT, *, ending: str = "wav", **options: float) -> int:
        before = {path.name for path in tmp_path.glob("*.sentences/*.wav")}
        with pytest.raises(KeyboardInterrupt):
            aw.narrate(write(tmp_path, text), tmp_path / f"book.{ending}", progress=leave_parts, **options)  # type: ignore[arg-type]
        return len({path.name for path in tmp_path.glob("*.sentences/*.wav")} - before)

    assert n_spoken() == 5
    assert n_spoken(ending="flac", loudness=-16) == 0
    assert n_spoken(TEXT.replace("today", "tonight")) == 1
    assert n_spoken(speed=1.5) == 5
    assert n_spoken(seed=1) == 5
    aw.clone(READER, name="me", consent="self", emotion="happy")
    for alias in ("Web", "World Wide Web"):
        local.library().set_lexicon("me", [LexiconEntry(word="W3C", alias=alias)])
        assert n_spoken("[happy] I like W3C.") == 1


@pytest.mark.parametrize("damage", [b"", b"RIFF", None])
def test_damaged_part_is_spoken_again(damage: bytes | None, tmp_path: Path) -> None:
    def stop(fraction: float, step: str) -> None:
        if step == "writing the file":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aw.narrate(write(tmp_path), tmp_path / "book.flac", progress=stop)
    part = next((tmp_path / "book.flac.sentences").glob("*.wav"))
    part.write_bytes(part.read_bytes()[:-1000] if damage is None else damage)
    assert aw.narrate(tmp_path / "book.md", tmp_path / "book.flac").n_spoken == 1


def test_second_narration_into_one_file_is_refused(tmp_path: Path) -> None:
    refused: list[LibraryError] = []

    def try_again(fraction: float, step: str) -> None:
        if not refused and step.startswith("chapter"):
            with pytest.raises(LibraryError, check=has_code("library_busy")) as caught:
                aw.narrate(tmp_path / "book.md", tmp_path / "book.wav")
            refused.append(caught.value)

    assert aw.narrate(write(tmp_path), tmp_path / "book.wav", progress=try_again).n_spoken == 5
    assert "book.wav.sentences" in refused[0].message


def test_engine_speaks_as_many_sentences_at_once_as_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speak, together = ToneEngine.synthesize, Barrier(2)

    def speak_together(engine: ToneEngine, task: SpeechTask) -> Generator[Chunk, None, None]:
        together.wait(60)  # breaks, and the sentence fails, if no other one is spoken at the same time
        yield from speak(engine, task)

    monkeypatch.setattr(ToneEngine, "max_concurrent", 2)
    monkeypatch.setattr(ToneEngine, "synthesize", speak_together)
    texts = ["The first sentence is long.", "A short one.", "The third is long again.", "The end.", "The end."]
    done = aw.narrate(write(tmp_path, "\n\n".join(texts)), tmp_path / "book.flac", srt=tmp_path / "b.srt")
    assert (done.left_out, done.n_sentences, done.n_spoken) == ((), 5, 4)
    assert re.findall(r"^[A-Z].*", (tmp_path / "b.srt").read_text("utf-8"), re.MULTILINE) == texts


TAKING_TURNS = """
from threading import Lock
from afterwords.backends.tone import ToneEngine
speaking = Lock()
class Engine(ToneEngine):
    name, backends, max_concurrent = "turns", ("turns",), 1
    def synthesize(self, task):
        if not speaking.acquire(blocking=False):
            raise ValueError("another utterance is spoken")
        try:
            yield from super().synthesize(task)
        finally:
            speaking.release()
"""


def test_engine_speaks_no_more_at_once_than_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "turns", TAKING_TURNS, "turns:Engine")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "turns,tone")
    aw.clone(READER, name="bob", consent="self", backend="turns")
    text = "\n\n".join(f"Sentence {n}.\n\nBOB: Answer {n} is {'very ' * 60} long." for n in range(9))
    done = aw.narrate(write(tmp_path, text, "b.txt"), tmp_path / "b.wav", voice="me", cast={"BOB": "bob"})
    assert (done.left_out, done.backends) == ((), ("tone", "turns"))


# -- failures -------------------------------------------------------------------------------------------------


def test_sentence_that_fails_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    text = (
        "# One\n\nBefore all of this. Now fault-fail happens. And fault-runaway too. fault-unspoken."
        "\n\nAfter all of that."
    )
    done = aw.narrate(write(tmp_path, text), tmp_path / "book.wav")
    assert done.n_sentences == 3
    assert [entry.partition("”")[0] for entry in done.left_out] == [
        "One: “Now fault-fail happens.",
        "One: “And fault-runaway too. fault-unspoken.",
    ]
    assert any(notice.startswith("tone can't speak a word") for notice in done.notices)


def test_broken_engine_ends_the_narration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    text = "Before all of this. " + "Now fault-fail happens again. " * 9
    with pytest.raises(SynthesisError):
        aw.narrate(write(tmp_path, text), tmp_path / "book.wav")
    assert len(list((tmp_path / "book.wav.sentences").glob("*.wav"))) == 1
    assert not (tmp_path / "book.wav").exists()


def test_full_disk_keeps_the_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    text = f"{TEXT}\n\nThis sentence is longer than all the others, and so its file has no space left on this disk.\n"
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        with pytest.raises(StorageFullError):
            aw.narrate(write(tmp_path, text), tmp_path / "book.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list((tmp_path / "book.wav.sentences").glob("*.wav"))) == 5
    assert aw.narrate(tmp_path / "book.md", tmp_path / "book.wav").n_spoken == 1


def test_wrong_options_are_refused_before_the_work(tmp_path: Path) -> None:
    book = write(tmp_path)
    (tmp_path / "c.gif").write_bytes(b"GIF89a")
    with pytest.raises(InvalidInputError, check=has_code("invalid_format")):
        aw.narrate(book, tmp_path / "book.aac")
    with pytest.raises(InvalidOptionError):
        aw.narrate(book, tmp_path / "book.wav", loudness=-3)
    with pytest.raises(InvalidOptionError):
        aw.narrate(book, tmp_path / "book.wav", cast={"a:b": "me"})
    with pytest.raises(InvalidInputError, match="not a cover"):
        aw.narrate(book, tmp_path / "book.wav", cover=tmp_path / "c.gif")
    with pytest.raises(TextError, check=has_code("empty_text")):
        aw.narrate(write(tmp_path, "[pause 1s]", "p.md"), tmp_path / "book.wav")
    assert not list(tmp_path.glob("*.sentences"))


def test_output_never_replaces_a_source_or_another_output(tmp_path: Path) -> None:
    book = write(tmp_path)
    (tmp_path / "c.png").write_bytes(image())
    (tmp_path / "link.srt").symlink_to(book)
    out = tmp_path / "book.wav"
    for srt, vtt in ((book, None), (None, tmp_path / "c.png"), (out, None), (tmp_path / "link.srt", None), ("s", "s")):
        with pytest.raises(FileError, match="that file", check=has_code("unwritable_output")):
            aw.narrate(book, out, cover=tmp_path / "c.png", srt=srt, vtt=vtt)
    assert book.read_text("utf-8") == TEXT
    assert not out.exists()


def test_sealed_voice_that_was_changed_is_refused(me: Voice, home: Path, tmp_path: Path) -> None:
    (reference,) = home.rglob("reference.wav")
    data = bytearray(reference.read_bytes())
    data[-2] ^= 1
    reference.write_bytes(data)
    for prompt in home.rglob("*tone*"):
        prompt.unlink()
    with pytest.raises(aw.AfterwordsError, check=has_code("corrupt_voice")):
        aw.narrate(write(tmp_path), tmp_path / "book.wav")
    assert disk.read(tmp_path / "book.md")
