"""Streams: speech that is read while the server generates it."""

from __future__ import annotations

import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords import Client, Voice
from afterwords.audio.audio import decode
from afterwords.audio.decoding import read_tags
from afterwords.audio.wav import Samples, pcm16, wav_header
from afterwords.client.audio import WavStream
from afterwords.errors import ConnectionLostError, InvalidResponseError, StreamConsumedError, VoiceNotFoundError
from afterwords.models import FormatName
from afterwords.provenance import read_mark
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory, n_busy
from tests.client.canned import canned_responses
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import RECORDING, wait_until
from tests.hosted.client import UNKNOWN_ID
from tests.hosted.http_server import HttpResponse
from tests.hosted.service import HostedService

TEXT = "The rest of this is generated while the beginning is read."
LONG = f"fault-slow {'and so on, ' * 100}"
SAMPLES = np.round(np.sin(np.arange(50) / 5) * 9_000).astype(np.float32) / np.float32(32_768)
MONO = wav_header(24_000, n_frames=len(SAMPLES), tags={"title": "me"}) + pcm16(SAMPLES)


def parse(*pieces: bytes) -> Samples:
    wav = WavStream()
    parts = [samples for piece in pieces if (samples := wav.feed(piece)) is not None]
    wav.end()
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def wav(data: bytes, *, n_channels: int = 1, encoding: int = 1, bits: int = 16, size: int | None = None) -> bytes:
    block = n_channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, encoding, n_channels, 8_000, 8_000 * block, block, bits)
    return b"RIFF\xff\xff\xff\xffWAVE" + fmt + struct.pack("<4sI", b"data", len(data) if size is None else size) + data


class TestWav:
    @given(st.lists(st.integers(0, len(MONO)), max_size=12))
    def test_pieces_can_have_any_length(self, cuts: list[int]) -> None:
        ends = [0, *sorted(cuts), len(MONO)]
        assert np.array_equal(parse(*(MONO[a:b] for a, b in pairwise(ends))), SAMPLES)

    def test_pieces_can_be_single_bytes(self) -> None:
        assert np.array_equal(parse(*(MONO[n : n + 1] for n in range(len(MONO)))), SAMPLES)

    def test_rate_and_tags_are_known_when_samples_begin(self) -> None:
        stream = WavStream()
        assert (stream.feed(MONO[:40]), stream.sample_rate) == (None, 0)
        stream.feed(MONO[40:])
        assert (stream.sample_rate, stream.tags) == (24_000, {"title": "me"})

    @pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
    def test_length_can_be_unknown(self, size: int) -> None:
        assert np.array_equal(parse(wav(pcm16(SAMPLES), size=size)), SAMPLES)

    @pytest.mark.parametrize("at", [1, 44, 45, 46, 47, 48, 60])
    def test_channels_are_averaged(self, at: int) -> None:
        stereo = wav(struct.pack("<8h", 100, 300, -100, -300, 0, 2, 7, 7), n_channels=2)
        assert np.array_equal(parse(stereo[:at], stereo[at:]) * 32_768, [200, -200, 1, 7])

    def test_chunks_after_the_samples_are_ignored(self) -> None:
        assert np.array_equal(parse(MONO, b"LIST\4\0\0\0INFO", b"\7" * 1_000), SAMPLES)

    @pytest.mark.parametrize("missing", [1, 2, 99])
    def test_truncated_wav_is_a_lost_connection(self, missing: int) -> None:
        with pytest.raises(ConnectionLostError):
            parse(MONO[:-missing])

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            MONO[:30],
            b"<!doctype html><title>Welcome</title>",
            b"RIFF\0\0\0\0AVI " + MONO[12:],
            wav(b"\0" * 8, encoding=3, bits=32),
            wav(b"\0" * 8, bits=24),
            wav(b"\0" * 8, n_channels=0),
            MONO[:12] + b"data\4\0\0\0\1\2\3\4",
            MONO[:12] + (b"junk" + struct.pack("<I", 70_000) + b"\0" * 70_000) * 2,
            MONO[:12] + b"junk\0\0\0\0" * 20_000,
            MONO[:12] + b"junk\xff\xff\xff\x7f" + b"\0" * 30,
        ],
    )
    def test_invalid_wav_is_refused(self, data: bytes) -> None:
        with pytest.raises(InvalidResponseError):
            parse(data)


class TestStream:
    def test_audio_arrives_while_it_is_generated(self, client: Client, direct: Client, voice: Voice) -> None:
        with client.stream(LONG, voice=voice) as speech:
            chunks = iter(speech)
            assert len(next(chunks).samples) > 0
            assert [job.job_id for job in direct.jobs.list(status="pending")] == [speech.job_id]

    def test_slow_network_delivers_pieces_as_they_arrive(
        self, faulty: Client, faults: FaultyServer, voice: Voice
    ) -> None:
        faults.inject(Fault.SLOW, method="POST", delay_s=0.2)
        began = time.monotonic()
        with faulty.stream(TEXT, voice=voice) as speech:
            times = [time.monotonic() - began for _ in speech]
        assert len(times) >= 4
        assert times[-1] - times[0] >= 0.4  # at least: the first piece does not wait for the last

    def test_stream_can_be_read_at_once(self, client: Client, voice: Voice) -> None:
        audio = client.stream(TEXT, voice="me").audio()
        assert audio.duration_s == pytest.approx(len(TEXT) * 0.06)
        mark = read_mark(audio.tags)
        assert mark is not None
        assert mark.voice_id == voice.voice_id
        assert n_busy(client) == 0

    @pytest.mark.parametrize(
        ("fault", "is_cached"), [(Fault.HALF_BODY, False), (Fault.HALF_BODY, True), (Fault.SHORT_LENGTH, True)]
    )
    def test_lost_connection_delivers_what_arrived(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault, is_cached: bool
    ) -> None:
        whole = direct.say(TEXT, voice=voice if is_cached else direct.voices.create(RECORDING, name="you")).samples
        faults.inject(fault, method="POST")
        speech = faulty.stream(TEXT, voice=voice)
        samples: list[Samples] = []
        assert speech.is_cached is is_cached
        with pytest.raises(ConnectionLostError):
            samples.extend(chunk.samples for chunk in speech)
        received = np.concatenate(samples)
        assert 0.4 < len(received) / len(whole) < 0.6
        assert np.array_equal(received, whole[: len(received)])
        assert n_busy(faulty) == 0

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER])
    def test_stream_that_never_began_is_retried(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST")
        assert faulty.stream(TEXT, voice=voice).audio().duration_s == pytest.approx(len(TEXT) * 0.06)
        assert len(list(direct.jobs.list())) == 1

    def test_closing_early_cancels_the_job(self, client: Client, direct: Client, voice: Voice) -> None:
        with client.stream(LONG, voice=voice) as speech:
            for _ in speech:
                break
        wait_until(lambda: direct.jobs.get(str(speech.job_id)).status == "cancelled", what="the end of the job")
        assert n_busy(client) == 0

    def test_stream_can_be_read_once(self, client: Client, voice: Voice) -> None:
        speech = client.stream(TEXT, voice=voice)
        speech.audio()
        with pytest.raises(StreamConsumedError):
            list(speech)

    def test_closed_stream_can_not_be_read(self, client: Client, voice: Voice) -> None:
        speech = client.stream(TEXT, voice=voice)
        speech.close()
        with pytest.raises(StreamConsumedError):
            speech.audio()

    def test_closing_while_reading_ends_the_stream(self, client: Client, voice: Voice) -> None:
        speech = client.stream(LONG, voice=voice)
        chunks = iter(speech)
        next(chunks)
        speech.close()
        with pytest.raises(ConnectionLostError):
            for _ in chunks:
                pass

    def test_unknown_voice_is_not_found(self, client: Client) -> None:
        with pytest.raises(VoiceNotFoundError):
            client.stream(TEXT, voice="unknown")

    def test_server_without_streams_sends_finished_audio(self, make_client: ClientFactory) -> None:
        with HostedService() as hosted:
            client = make_client(hosted.url, hosted.api_key)
            client.voices.create(RECORDING, name="me")
            first, again = (client.stream(TEXT, voice="me") for _ in range(2))
            assert (first.is_cached, first.backend, first.job_id is None) == (False, "qwen3-1.7b", False)
            assert np.array_equal(first.audio().samples, again.audio().samples)
            assert again.is_cached

    @pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac", "pcm"])
    def test_bytes_arrive_while_they_are_generated(
        self, client: Client, voice: Voice, tmp_path: Path, format: FormatName
    ) -> None:
        with client.stream_bytes(TEXT, voice="me", format=format) as speech:
            pieces = list(speech)
        assert len(pieces) > 1
        assert (speech.voice_id, speech.backend, speech.is_cached) == (voice.voice_id, "tone", False)
        assert speech.content_type.startswith("audio/")
        if format != "pcm":
            assert decode(b"".join(pieces)).duration_s == pytest.approx(len(TEXT) * 0.06, abs=0.1)
        again = client.stream_bytes(TEXT, voice="me", format=format).save(tmp_path / f"again.{format}")
        assert again.stat().st_size > 1_000
        assert n_busy(client) == 0

    def test_stream_is_saved(self, client: Client, voice: Voice, tmp_path: Path) -> None:
        path = client.stream(TEXT, voice=voice).save(tmp_path / "speech.flac")
        audio = decode(path)
        assert audio.duration_s == pytest.approx(len(TEXT) * 0.06)
        assert read_mark(read_tags(path)) is not None

    def test_lost_connection_keeps_the_existing_file(
        self, faulty: Client, faults: FaultyServer, voice: Voice, tmp_path: Path
    ) -> None:
        path = tmp_path / "speech.mp3"
        path.write_bytes(b"before")
        faults.inject(Fault.HALF_BODY, method="POST")
        with pytest.raises(ConnectionLostError):
            faulty.stream_bytes(TEXT, voice=voice, format="mp3").save(path)
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]
        assert n_busy(faulty) == 0

    def test_closing_the_bytes_early_cancels_the_job(self, client: Client, direct: Client, voice: Voice) -> None:
        with client.stream_bytes(LONG, voice=voice, format="mp3") as speech:
            next(iter(speech))
        wait_until(lambda: direct.jobs.get(str(speech.job_id)).status == "cancelled", what="the end of the job")
        with pytest.raises(StreamConsumedError):
            list(speech)

    @pytest.mark.parametrize(
        "response",
        [
            HttpResponse(200, b"<!doctype html>", "text/html"),
            HttpResponse(200, b"<!doctype html>", "audio/wav"),
            HttpResponse(200, b"", "audio/wav"),
            HttpResponse(200, b"no gzip", "audio/wav", {"Content-Encoding": "gzip"}),
        ],
    )
    def test_invalid_audio_is_refused_and_connection_released(
        self, make_client: ClientFactory, response: HttpResponse
    ) -> None:
        with canned_responses(response) as (url, _):
            client = make_client(url, "aw_x")
            with pytest.raises(InvalidResponseError):
                client.stream(TEXT, voice=UNKNOWN_ID)
            assert n_busy(client) == 0
