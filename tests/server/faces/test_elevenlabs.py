"""ElevenLabs' API: the official client, and what other clients send, against a real server process."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import soundfile
from elevenlabs import AsyncElevenLabs, ElevenLabs, VoiceSettings
from elevenlabs.core.api_error import ApiError
from elevenlabs.errors import UnprocessableEntityError
from elevenlabs.types.speech_history_item_response import SpeechHistoryItemResponse
from elevenlabs.types.subscription import Subscription
from elevenlabs.types.user import User
from pydantic import BaseModel

from afterwords.audio.wav import Samples
from afterwords.server.faces.elevenlabs import FORMATS
from tests.e2e.served import RECORDING, Served, register, serving, wait_for_job, wait_until
from tests.server.faces.conftest import run_node

REQUESTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("elevenlabs_requests.json").read_text())
SECONDS_PER_CHARACTER = 0.06
SLOW = "fault-slow " + "and so on, " * 100
SPEECH = "/elevenlabs/v1/text-to-speech"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("elevenlabs") / "home") as server:
        with server.client() as client:
            register(client, name="me")
            assert client.put("/v1/aliases/rachel", json={"voice": "me"}).status_code == 200
        yield server


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@contextmanager
def connect(served: Served, key: str | None = None) -> Iterator[ElevenLabs]:
    """Yield the official client; it closes no connections by itself."""
    with httpx.Client(timeout=60, trust_env=False) as http:
        yield ElevenLabs(base_url=f"{served.url}/elevenlabs", api_key=key or served.key, httpx_client=http)


@pytest.fixture
def client(served: Served) -> Iterator[ElevenLabs]:
    with connect(served) as client:
        yield client


def decode(data: bytes, output_format: str) -> tuple[Samples, int]:
    """Decode, as a player does that trusts the name of the format where there is no header."""
    codec, rate = output_format.split("_")[:2]
    if codec == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768), int(rate)
    if codec in ("ulaw", "alaw"):
        options: dict[str, Any] = {"format": "RAW", "subtype": codec.upper(), "samplerate": int(rate), "channels": 1}
        samples: Samples = soundfile.read(io.BytesIO(data), dtype="float32", **options)[0]
        return samples, int(rate)
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(audio=0))
    parts = [frame.to_ndarray().reshape(-1).astype(np.float32) for frame in frames]
    scale = 1 / 32768 if frames[0].format.name.startswith("s16") else 1
    return np.concatenate(parts) * np.float32(scale), frames[0].sample_rate


def check_tone(data: bytes, output_format: str, text: str, *, speed: float = 1) -> None:
    """Check sample rate, length and level of what the engine `tone` says."""
    samples, rate = decode(data, output_format)
    assert rate == int(output_format.split("_")[1])
    assert len(samples) / rate == pytest.approx(SECONDS_PER_CHARACTER * len(text) / speed, abs=3 * 1152 / rate)
    assert np.abs(samples[len(samples) // 3 : len(samples) // 2]).max() == pytest.approx(0.2, abs=0.03)


# -- the official client --------------------------------------------------------------------------------------


def test_client_speaks_whole_and_streamed(client: ElevenLabs) -> None:
    text = "Spoken by the client."
    whole = b"".join(client.text_to_speech.convert("me", text=text, model_id="eleven_multilingual_v2"))
    check_tone(whole, "mp3_44100_128", text)
    assert whole[:2] == b"\xff\xfb"  # a frame, no tag
    text = "Streamed to the client."
    streamed = client.text_to_speech.stream("rachel", text=text, output_format="wav_16000", language_code="en")
    check_tone(b"".join(streamed), "wav_16000", text)
    text = "This is said faster than usual, by a half."
    fast = client.text_to_speech.convert(
        "me",
        text=text,
        output_format="pcm_24000",
        seed=7,
        voice_settings=VoiceSettings(stability=0.3, speed=1.5),
    )
    check_tone(b"".join(fast), "pcm_24000", text, speed=1.5)


@pytest.mark.anyio
async def test_asynchronous_client_speaks(served: Served) -> None:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        client = AsyncElevenLabs(base_url=f"{served.url}/elevenlabs", api_key=served.key, httpx_client=http)
        for speak in (client.text_to_speech.convert, client.text_to_speech.stream):
            text = f"Asynchronously, by {speak.__name__}."
            data = b"".join([chunk async for chunk in speak("me", text=text, output_format="pcm_16000")])
            check_tone(data, "pcm_16000", text)
        assert [voice.name for voice in (await client.voices.search(search="ME")).voices] == ["me"]
        with pytest.raises(ApiError, match="the nearest: me"):
            [chunk async for chunk in client.text_to_speech.stream("mee", text="Hello.")]


def test_audio_arrives_before_the_end_of_the_synthesis(client: ElevenLabs, http: httpx.Client) -> None:
    with client.text_to_speech.with_raw_response.stream("me", text=SLOW, output_format="pcm_24000") as answer:
        first = next(answer.data)
        job_id = answer.headers["x-job-id"]
        assert first
        assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    wait_until(lambda: http.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled", what="the cancellation")


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"voice_id": "mee"}, 404, "voice_not_found", "the nearest: me"),
        ({"model_id": "eleven_v3"}, 404, "model_not_found", "available: tone, eleven_multilingual_v2"),
        ({"model_id": "whisper"}, 404, "model_not_found", "available: tone, eleven_multilingual_v2"),
        ({"text": ""}, 422, "empty_text", "text"),
        ({"output_format": "mp3_44100_100"}, 422, "invalid_field", "output_format.*mp3_44100_128"),
        ({"voice_settings": VoiceSettings(speed=9)}, 422, "invalid_field", "voice_settings.speed"),
        ({"language_code": "xx"}, 422, "unsupported_lang", "language"),
    ],
)
def test_refusal_is_the_right_exception(
    client: ElevenLabs, fields: dict[str, Any], status: int, code: str, message: str
) -> None:
    kind = UnprocessableEntityError if status == 422 else ApiError
    with pytest.raises(kind, match=message) as caught:
        list(client.text_to_speech.convert(**{"voice_id": "me", "text": "Hello.", **fields}))
    detail, error = caught.value.body["detail"], caught.value.body["error"]
    assert (caught.value.status_code, detail["status"], error["code"]) == (status, code, status)
    assert detail["message"] == error["message"]
    headers = caught.value.headers or {}
    assert detail["request_id"] == headers["request-id"] == headers["x-request-id"]


def test_missing_text_is_unprocessable(http: httpx.Client) -> None:
    answer = http.post(f"{SPEECH}/me", json={})
    assert (answer.status_code, answer.json()["detail"]["status"]) == (422, "missing_field")


def test_used_up_quota_has_no_long_wait(served: Served) -> None:
    key = served.new_key(character_limit=5)
    with served.client(key) as http:
        register(http, name="me")
    with connect(served, key) as client, pytest.raises(ApiError) as caught:
        list(client.text_to_speech.convert("me", text="More than five characters."))
    assert (caught.value.status_code, caught.value.body["detail"]["status"]) == (429, "quota_exceeded")
    assert "retry-after" not in (caught.value.headers or {})


def test_failure_in_the_middle_breaks_the_connection(client: ElevenLabs) -> None:
    text = "This text fails after its beginning: fault-fail"
    with pytest.raises(httpx.RemoteProtocolError):
        list(client.text_to_speech.stream("me", text=text, output_format="pcm_24000"))


def test_key_is_taken_from_either_header_here_only(served: Served) -> None:
    with connect(served, "unknown") as client, pytest.raises(ApiError) as caught:
        client.voices.get_all()
    assert (caught.value.status_code, caught.value.body["detail"]["status"]) == (401, "invalid_api_key")
    with httpx.Client(base_url=served.url, trust_env=False) as bare:
        xi, bearer = {"xi-api-key": served.key}, {"Authorization": f"Bearer {served.key}"}
        assert bare.get("/elevenlabs/v1/voices", headers=xi).status_code == 200
        assert bare.get("/elevenlabs/v1/voices", headers=bearer).status_code == 200
        assert bare.get("/elevenlabs/v1/voices", headers={**bearer, "xi-api-key": "unknown"}).status_code == 401
        assert bare.get("/elevenlabs/v1/voices").status_code == 401
        assert bare.get("/v1/voices", headers=xi).status_code == 401


# -- what clients send ----------------------------------------------------------------------------------------


SPOKEN = [sent for sent in REQUESTS if "media_type" in sent]
REFUSED = [sent for sent in REQUESTS if "refused" in sent]


@pytest.mark.parametrize("sent", SPOKEN, ids=[sent["client"] for sent in SPOKEN])
def test_recorded_request_is_spoken(served: Served, sent: dict[str, Any]) -> None:
    headers = {"xi-api-key": served.key, **sent["headers"]}
    url = f"{served.url}{SPEECH}/me{sent['path']}"
    answer = httpx.post(url, json=sent["body"], headers=headers, trust_env=False)

    assert (answer.status_code, answer.headers["content-type"]) == (200, sent["media_type"])
    assert len(answer.content) > 1000


@pytest.mark.parametrize("sent", REFUSED, ids=[sent["client"] for sent in REFUSED])
def test_recorded_request_is_refused(http: httpx.Client, sent: dict[str, Any]) -> None:
    answer = http.post(f"{SPEECH}/me{sent['path']}", json=sent["body"], headers=sent["headers"])

    detail = answer.json()["detail"]
    assert [answer.status_code, detail["status"], detail["param"]] == sent["refused"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_each_format_is_what_its_name_says(http: httpx.Client, output_format: str) -> None:
    text = "This is said once, and then read from the cache."
    answer = http.post(f"{SPEECH}/me", params={"output_format": output_format}, json={"text": text})
    check_tone(answer.content, output_format, text)
    if job_id := answer.headers.get("x-job-id"):
        wait_for_job(http, job_id)


# -- voices and models ----------------------------------------------------------------------------------------


@pytest.fixture
def key(served: Served) -> str:
    """Return the key of an account of its own."""
    return served.new_key()


@pytest.fixture
def own(served: Served, key: str) -> Iterator[ElevenLabs]:
    with connect(served, key) as client:
        yield client


def test_voice_is_cloned_changed_and_deleted(served: Served, key: str, own: ElevenLabs) -> None:
    files = [("me.wav", RECORDING, "audio/wav"), ("more.wav", b"not a recording", "audio/wav")]
    added = own.voices.ivc.create(
        name="Anna",
        files=files,
        description="A test.",
        labels={"accent": "none", "language": "de"},
        request_options={"additional_body_parameters": {"consent": "self"}},
    )
    assert added.requires_verification is False
    voice = own.voices.get(added.voice_id)
    assert (voice.name, voice.category, voice.description) == ("Anna", "cloned", "A test.")
    assert voice.labels == {"accent": "none", "language": "de"}
    with served.client(key) as http:
        native = http.get(f"/v1/voices/{added.voice_id}").json()
    assert (native["lang"], native["consent"]["kind"]) == ("de", "self")

    assert own.voices.update(added.voice_id, name="Berta", labels={"accent": "some"}).status == "ok"
    voice = own.voices.get("Berta")
    assert (voice.voice_id, voice.description) == (added.voice_id, "A test.")
    assert voice.labels == {"accent": "some", "language": "de"}
    with pytest.raises(UnprocessableEntityError, match="add another voice"):
        own.voices.update(added.voice_id, name="Berta", files=files)
    assert own.voices.settings.get(added.voice_id) == own.voices.settings.get_default()

    assert own.voices.delete(added.voice_id).status == "ok"
    assert own.voices.get_all().voices == []
    with pytest.raises(UnprocessableEntityError) as caught:
        own.voices.ivc.create(name="Anna", files=[])
    assert caught.value.body["detail"]["param"] == "files"


def test_voices_are_found_sorted_and_paged(served: Served, key: str, own: ElevenLabs) -> None:
    with served.client(key) as http:
        ids = {name: register(http, name=name) for name in ("beta", "Alpha", "gamma", "delta")}
    assert [voice.voice_id for voice in own.voices.get_all().voices] == [*ids.values()]
    first = own.voices.search(page_size=3, sort="name", sort_direction="asc")
    assert [voice.name for voice in first.voices] == ["Alpha", "beta", "delta"]
    assert (first.has_more, first.total_count) == (True, 4)
    last = own.voices.search(page_size=3, sort="name", sort_direction="asc", next_page_token=first.next_page_token)
    assert ([voice.name for voice in last.voices], last.has_more, last.next_page_token) == (["gamma"], False, None)
    assert [voice.name for voice in own.voices.search().voices] == ["delta", "gamma", "Alpha", "beta"]
    assert [voice.name for voice in own.voices.search(search="ALPH").voices] == ["Alpha"]
    assert own.voices.search(category="premade").voices == []


def test_models_are_the_backends_and_those_of_elevenlabs(client: ElevenLabs) -> None:
    models = {model.model_id: model for model in client.models.list()}
    assert [*models] == ["tone", "eleven_multilingual_v2", "eleven_turbo_v2_5", "eleven_flash_v2_5"]
    assert models["tone"].maximum_text_length_per_request == 5_000
    assert "en" in [language.language_id for language in models["eleven_flash_v2_5"].languages or []]


# -- account and history --------------------------------------------------------------------------------------


def required_keys(kind: type[BaseModel]) -> set[str]:
    """Return the keys that the JavaScript SDK demands; the Python SDK only lists them."""
    return {name for name, field in kind.model_fields.items() if field.is_required()}


def test_subscription_has_the_limit_and_every_key(served: Served) -> None:
    key = served.new_key(character_limit=100)
    with served.client(key) as http, connect(served, key) as client:
        register(http, name="me")
        list(client.text_to_speech.convert("me", text="Twenty-one characters"))
        usage, native = client.user.subscription.get(), http.get("/v1/usage").json()
        assert (usage.character_count, usage.character_limit) == (21, 100)
        assert (usage.tier, usage.status, usage.voice_slots_used) == ("unlimited", "free", 1)
        end = datetime.fromisoformat(native["period_end"])
        assert usage.next_character_count_reset_unix == end.timestamp()
        assert required_keys(Subscription) <= http.get("/elevenlabs/v1/user/subscription").json().keys()
        user = http.get("/elevenlabs/v1/user").json()
        assert required_keys(User) <= user.keys()
        assert user["subscription"]["character_count"] == 21
        assert client.user.get().created_at > 1_700_000_000


def test_history_has_the_finished_jobs_and_their_audio(served: Served, key: str, own: ElevenLabs) -> None:
    texts = ["The first text.", "The second text.", "The third text."]
    with served.client(key) as http:
        voice_id = register(http, name="me")
        for text in texts:
            with own.text_to_speech.with_raw_response.convert("me", text=text) as answer:
                assert list(answer.data)
            wait_for_job(http, answer.headers["x-job-id"])
        assert (
            required_keys(SpeechHistoryItemResponse) <= http.get("/elevenlabs/v1/history").json()["history"][0].keys()
        )
    first = own.history.list(page_size=2)
    assert (len(first.history), first.has_more) == (2, True)
    newest = first.history[0]
    assert (newest.voice_id, newest.voice_name, newest.model_id) == (voice_id, "me", "tone")
    assert newest.character_count_change_to == len(texts[2])
    check_tone(b"".join(own.history.get_audio(newest.history_item_id)), "mp3_44100_128", texts[2])
    assert own.history.get(newest.history_item_id) == newest
    last = own.history.list(page_size=2, start_after_history_item_id=first.last_history_item_id)
    assert (len(last.history), last.has_more) == (1, False)
    assert own.history.list(voice_id="another").history == []
    with pytest.raises(ApiError) as caught:
        own.history.get(voice_id)
    assert (caught.value.status_code, caught.value.body["detail"]["status"]) == (404, "job_not_found")


def test_deleted_history_item_leaves_no_audio(served: Served, key: str, own: ElevenLabs) -> None:
    text = "Spoken, and then deleted."
    with served.client(key) as http:
        register(http, name="me")
        for _ in range(2):  # the second one comes from the cache
            with own.text_to_speech.with_raw_response.convert("me", text=text) as answer:
                assert list(answer.data)
            if job_id := answer.headers.get("x-job-id"):
                wait_for_job(http, job_id)
        item = own.history.list().history[0].history_item_id
        blobs = served.home / "server" / "blobs"
        before = {path for path in blobs.rglob("*.wav") if path.name != "ref.wav"}
        assert own.history.delete(item).status == "ok"
        gone = before - {*blobs.rglob("*.wav")}
        assert {path.parent.name for path in gone} == {"jobs", "cache"}
        assert own.history.list().history == []
        assert http.get(f"/v1/jobs/{item}").status_code == 404
        assert http.get("/v1/usage").json()["characters"] == len(text)
        with own.text_to_speech.with_raw_response.convert("me", text=text) as answer:
            assert list(answer.data)
        assert answer.headers["x-cache"] == "MISS"
    with pytest.raises(ApiError) as caught:
        own.history.delete(item)
    assert (caught.value.status_code, caught.value.body["detail"]["status"]) == (404, "job_not_found")


def test_settings_of_a_voice_are_those_of_its_texts(served: Served, key: str, own: ElevenLabs) -> None:
    with served.client(key) as http:
        register(http, name="me")
        assert http.post("/elevenlabs/v1/voices/me/settings/edit", json={"speed": 9}).status_code == 422
    text = "Spoken twice as fast."
    own.voices.settings.update("me", request=VoiceSettings(speed=2.0, stability=0.9))
    assert own.voices.settings.update("me", request=VoiceSettings(style=0.1)).status == "ok"
    found = own.voices.settings.get("me")
    assert (found.speed, found.stability, found.style, found.similarity_boost) == (2.0, 0.9, 0.1, 0.75)
    assert own.voices.get("me").settings == found
    n_bytes = 2 * 24_000 * SECONDS_PER_CHARACTER * len(text)
    fast = b"".join(own.text_to_speech.convert("me", text=text, output_format="pcm_24000"))
    assert len(fast) == pytest.approx(n_bytes / 2, abs=2)
    usual = VoiceSettings(speed=1.0)
    given = b"".join(own.text_to_speech.convert("me", text=text, output_format="pcm_24000", voice_settings=usual))
    assert len(given) == n_bytes


def test_timestamps_cover_the_text_and_the_audio(client: ElevenLabs) -> None:
    text = "When is each of these words spoken?\u2028On the second line, and slowly."
    whole = client.text_to_speech.convert_with_timestamps("me", text=text)
    assert whole.alignment is not None
    check_tone(base64.b64decode(whole.audio_base_64), "mp3_44100_128", text)
    parts = list(client.text_to_speech.stream_with_timestamps("me", text=text, output_format="pcm_24000"))
    check_tone(b"".join(base64.b64decode(part.audio_base_64) for part in parts), "pcm_24000", text)
    found = [part.alignment for part in parts if part.alignment]
    assert found == [part.normalized_alignment for part in parts]
    starts = [start for each in found for start in each.character_start_times_seconds]
    ends = [end for each in found for end in each.character_end_times_seconds]
    assert [c for each in found for c in each.characters] == whole.alignment.characters == list(text)
    assert starts == pytest.approx(whole.alignment.character_start_times_seconds, abs=0.002)
    assert ends == pytest.approx(whole.alignment.character_end_times_seconds, abs=0.002)
    assert starts[text.index("second")] == pytest.approx(SECONDS_PER_CHARACTER * text.index("second"), abs=0.02)
    until_s = 0.0
    for part in parts[:-1]:
        until_s += len(base64.b64decode(part.audio_base_64)) / 48_000
        assert part.alignment is not None
        assert all(start < until_s for start in part.alignment.character_start_times_seconds)


def test_lines_with_timestamps_come_while_it_is_spoken(http: httpx.Client) -> None:
    body, path = {"text": f"{SLOW} in lines"}, f"{SPEECH}/me/stream/with-timestamps"
    with http.stream("POST", path, json=body, params={"output_format": "pcm_24000"}) as answer:
        lines = answer.iter_lines()  # once it is garbage, the response is closed
        first = json.loads(next(lines))
        assert http.get(f"/v1/jobs/{answer.headers['x-job-id']}").json()["status"] == "pending"
    assert first["alignment"]["characters"][0] == "f"


def test_lines_with_timestamps_are_short(http: httpx.Client) -> None:
    body = {"text": "A long text, in short lines. " * 60}
    path = f"{SPEECH}/me/stream/with-timestamps"
    with http.stream("POST", path, json=body, params={"output_format": "pcm_48000"}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = list(answer.iter_lines())
    assert max(map(len, lines)) < 128 * 1024
    assert "".join("".join(json.loads(line)["alignment"]["characters"]) for line in lines) == body["text"]


def test_disconnect_cancels_speech_with_timestamps(served: Served, http: httpx.Client) -> None:
    earlier = [job["job_id"] for job in http.get("/v1/jobs?limit=1").json()]
    body = json.dumps({"text": f"{SLOW} with timestamps"})
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    with closing(HTTPConnection(served.url.removeprefix("http://"))) as connection:
        connection.request("POST", f"{SPEECH}/me/with-timestamps", body, headers)
        [job] = wait_until(
            lambda: [job for job in http.get("/v1/jobs?limit=1").json() if job["job_id"] not in earlier], what="the job"
        )
    path = f"/v1/jobs/{job['job_id']}"
    wait_until(lambda: http.get(path).json()["status"] == "cancelled", what="the end of the job")


def test_failed_speech_with_timestamps_is_an_error(http: httpx.Client) -> None:
    answer = http.post(f"{SPEECH}/me/with-timestamps", json={"text": "fault-fail with timestamps"})
    assert (answer.status_code, answer.json()["detail"]["status"]) == (500, "synthesis_failed")


# -- JavaScript -----------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_javascript_clients_speak(served: Served, tmp_path: Path) -> None:
    recording = tmp_path / "me.wav"
    recording.write_bytes(RECORDING)
    seen = run_node(
        "elevenlabs_clients.mjs",
        ["@elevenlabs/elevenlabs-js@2", "ai@7", "@ai-sdk/elevenlabs@3"],
        tmp_path,
        served,
        RECORDING=str(recording),
    )
    assert seen["whole"] == round(2 * 24_000 * SECONDS_PER_CHARACTER * len("From JavaScript."))
    assert seen["streamed"] == round(2 * 24_000 * SECONDS_PER_CHARACTER * len("Streamed to JavaScript."))
    assert "me" in seen["voices"]
    assert "me" in seen["found"]
    assert seen["models"] == ["tone", "eleven_multilingual_v2", "eleven_turbo_v2_5", "eleven_flash_v2_5"]
    assert seen["cloned"] == {"name": "From JavaScript", "category": "cloned"}
    assert seen["tier"] == seen["userTier"] == "unlimited"
    assert seen["history"] > 0
    assert (seen["error"]["status"], seen["error"]["code"]) == (404, "voice_not_found")
    assert seen["isUnprocessable"] is True
    assert seen["aiSdk"]["mediaType"] == "audio/mpeg"
    assert seen["aiSdk"]["size"] > 5_000
    assert "has no such voice; the nearest" in seen["aiSdkError"]
