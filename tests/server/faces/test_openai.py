"""OpenAI's API: the official client, and what other clients send, against a real server process."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
from starlette.types import Message

from afterwords.audio.decoding import read_tags
from afterwords.audio.wav import Samples, read_wav
from afterwords.provenance import read_mark
from afterwords.server.routing import RequestContext
from afterwords.server.services.synthesis import Synthesis
from afterwords.server.store import SqlStore
from tests.e2e.served import RECORDING, Served, register, serving, wait_for_job, wait_until
from tests.server.faces.conftest import InProcess, run_node

REQUESTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("openai_requests.json").read_text())
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
SECONDS_PER_CHARACTER = 0.06
SLOW = "fault-slow " + "and so on, " * 100


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("openai") / "home") as server:
        with server.client() as client:
            register(client, name="me")
            for name in ("alloy", "ash", "nova"):
                assert client.put(f"/v1/aliases/{name}", json={"voice": "me"}).status_code == 200
        yield server


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def connect(served: Served, key: str | None = None, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key or served.key, **options)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with connect(served) as client:
        yield client


def decode(data: bytes, kind: str) -> tuple[Samples, int]:
    """Decode with libav, as most players do; pcm is what OpenAI's reference says."""
    if kind == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768), 24_000
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(audio=0))
    parts = [frame.to_ndarray().reshape(-1).astype(np.float32) for frame in frames]
    scale = 1 / 32768 if frames[0].format.name.startswith("s16") else 1
    return np.concatenate(parts) * np.float32(scale), frames[0].sample_rate


def check_tone(data: bytes, kind: str, text: str) -> None:
    """Check length and level of what the engine `tone` says."""
    samples, rate = decode(data, kind)
    assert len(samples) / rate == pytest.approx(SECONDS_PER_CHARACTER * len(text), abs=2 * 1152 / 24_000)
    assert np.abs(samples[len(samples) // 3 : len(samples) // 2]).max() == pytest.approx(0.2, abs=0.03)


def wait_until_stored(http: httpx.Client, headers: Mapping[str, str]) -> None:
    """Wait for the job of an answer: it ends a moment after its audio."""
    if job_id := headers.get("x-job-id"):
        assert wait_for_job(http, job_id)["status"] == "ready"


# -- the official client --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_each_format_is_decoded_while_and_after_it_is_made(
    client: openai.OpenAI, http: httpx.Client, kind: str
) -> None:
    text = f"This is said once as {kind}, and then read from the cache."
    for cache in ("MISS", "HIT"):
        answer = client.audio.speech.with_raw_response.create(
            model="gpt-4o-mini-tts",
            voice="alloy",
            input=text,
            response_format=kind,
        )
        assert (answer.headers["content-type"], answer.headers["x-cache"]) == (MEDIA_TYPES[kind], cache)
        assert answer.headers["x-request-id"]
        check_tone(answer.content, kind, text)
        wait_until_stored(http, answer.headers)


def test_streamed_files_can_be_read_by_soundfile(client: openai.OpenAI) -> None:
    for kind in ("wav", "mp3", "flac", "opus"):
        text = f"Streamed {kind}."
        with client.audio.speech.with_streaming_response.create(
            model="tts-1",
            voice="me",
            input=text,
            response_format=kind,
        ) as answer:
            data = answer.read()
        samples, rate = soundfile.read(io.BytesIO(data))
        assert len(samples) / rate == pytest.approx(SECONDS_PER_CHARACTER * len(text), abs=2 * 1152 / 24_000)


def test_events_have_the_times_of_words(http: httpx.Client) -> None:
    text = "Words with their times, in events."
    body = {"input": text, "voice": "me", "stream_format": "sse", "response_format": "pcm", "word_timestamps": True}
    lines = http.post("/v1/audio/speech", json=body).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    words = [word for event in events if event["type"] == "speech.audio.timestamps" for word in event["words"]]
    assert [word["word"] for word in words] == ["Words", "with", "their", "times", "in", "events"]
    for word in words:
        place_ms = 1000 * SECONDS_PER_CHARACTER * text.index(word["word"])
        assert word["start_ms"] == pytest.approx(place_ms, abs=2)
    assert events[0]["type"] == "speech.audio.timestamps"
    assert events[-1]["type"] == "speech.audio.done"
    refused = http.post("/v1/audio/speech", json={**body, "stream_format": "audio"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "word_timestamps")


def test_streamed_mp3_has_frames_only_and_a_file_the_mark(client: openai.OpenAI, http: httpx.Client) -> None:
    text = "Marked, or not."
    answer = client.audio.speech.with_raw_response.create(model="tts-1", voice="me", input=text)
    wait_until_stored(http, answer.headers)
    streamed, cached = (
        answer.content,
        client.audio.speech.create(model="tts-1", voice="me", input=text).read(),
    )
    assert streamed[:2] == b"\xff\xf3"
    assert b"Xing" not in streamed[:400]
    mark = read_mark(read_tags(cached))
    assert mark is not None
    assert mark.is_synthetic


def test_audio_arrives_before_the_end_of_the_synthesis(client: openai.OpenAI, http: httpx.Client) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tone", voice="me", input=SLOW, response_format="pcm"
    ) as answer:
        chunks = answer.iter_bytes(1024)  # the connection is closed once the iterator is gone
        first = next(chunks)
        job = http.get(f"/v1/jobs/{answer.headers['x-job-id']}").json()
        assert (len(first), job["status"]) == (1024, "pending")


@pytest.mark.anyio
async def test_asynchronous_client_speaks(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
        text = "Asynchronously."
        answer = await client.audio.speech.create(model="tts-1", voice="me", input=text, response_format="pcm")
        check_tone(answer.content, "pcm", text)
        async with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice={"id": "me"}, input=f"{text}!", response_format="wav"
        ) as streamed:
            data = b"".join([chunk async for chunk in streamed.iter_bytes()])
        check_tone(data, "wav", f"{text}!")


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tone", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert client.models.retrieve("tts-1-hd-1106").id == "tts-1-hd-1106"
    with pytest.raises(openai.NotFoundError, match="available: tone, tts-1"):
        client.models.retrieve("whisper-1")


@pytest.mark.parametrize(
    ("fields", "kind", "code", "message"),
    [
        ({"voice": "onyx"}, openai.NotFoundError, "voice_not_found", "the nearest: me.*`afterwords alias NAME VOICE`"),
        ({"voice": "mee"}, openai.NotFoundError, "voice_not_found", "the nearest: me"),
        ({"model": "tts-2"}, openai.NotFoundError, "model_not_found", "available: tone, tts-1, tts-1-hd, gpt-4o-mini"),
        ({"input": ""}, openai.UnprocessableEntityError, "empty_text", "text"),
        ({"speed": 9}, openai.UnprocessableEntityError, "invalid_field", "speed.*less than or equal to 4"),
        ({"response_format": "aiff"}, openai.UnprocessableEntityError, "invalid_field", "response_format"),
        ({"extra_body": {"sample_rate": 11025}}, openai.UnprocessableEntityError, "invalid_field", "must be one of"),
        ({"extra_body": {"ref_audio": "x"}}, openai.UnprocessableEntityError, "invalid_field", "cloned when it is"),
        ({"extra_body": {"voice": None}}, openai.BadRequestError, "missing_field", "voice"),
    ],
)
def test_refusal_is_the_right_exception(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        client.audio.speech.create(**{"model": "tts-1", "voice": "me", "input": "Hello.", **fields})
    assert caught.value.code == code
    assert caught.value.request_id


def test_unknown_key_is_an_authentication_error(served: Served) -> None:
    with connect(served, "unknown") as client, pytest.raises(openai.AuthenticationError, match="API key"):
        client.audio.speech.create(model="tts-1", voice="me", input="Hello.")
    empty = httpx.post(f"{served.url}/v1/audio/speech", json={}, headers={"Authorization": "Bearer"})
    assert empty.status_code == 401


def test_used_up_quota_is_not_tried_again(served: Served) -> None:
    key = served.new_key(character_limit=5)
    with served.client(key) as http:
        register(http, name="me")

    def n_refused() -> int:
        return served.log.read_text().count("/v1/audio/speech 429")

    before = n_refused()
    with connect(served, key) as client, pytest.raises(openai.RateLimitError) as caught:
        client.audio.speech.create(model="tts-1", voice="me", input="More than five characters.")
    assert caught.value.code == "quota_exceeded"
    wait_until(lambda: n_refused() > before, what="the line in the log")  # it follows the answer
    assert n_refused() == before + 1


def test_failure_in_the_middle_breaks_the_connection(served: Served) -> None:
    with connect(served, max_retries=0) as client:
        text = "This text fails after its beginning: fault-fail"
        with pytest.raises(openai.APIConnectionError):
            client.audio.speech.create(model="tts-1", voice="me", input=text, response_format="pcm")
    body = {"model": "tts-1", "voice": "me", "input": f"{text}!", "stream_format": "sse"}
    lines: list[str] = []
    with served.client() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            lines.extend(answer.iter_lines())
        assert answer.status_code == 200


def test_disconnect_cancels_the_job(client: openai.OpenAI, http: httpx.Client) -> None:
    for stream_format in ("audio", "sse"):
        with client.audio.speech.with_streaming_response.create(
            model="tts-1",
            voice="me",
            input=f"{SLOW} {stream_format}",
            stream_format=stream_format,
        ) as answer:
            next(answer.iter_bytes(16))
            path = f"/v1/jobs/{answer.headers['x-job-id']}"
        wait_until(lambda path=path: http.get(path).json()["status"] == "cancelled", what="the cancellation")  # type: ignore[misc]


# -- what clients send ----------------------------------------------------------------------------------------


SPOKEN = [sent for sent in REQUESTS if "media_type" in sent]
REFUSED = [sent for sent in REQUESTS if "refused" in sent]


@pytest.mark.parametrize("sent", SPOKEN, ids=[sent["client"] for sent in SPOKEN])
def test_recorded_request_is_spoken(http: httpx.Client, sent: dict[str, Any]) -> None:
    answer = http.post("/v1/audio/speech", json=sent["body"], headers=sent["headers"])

    assert (answer.status_code, answer.headers["content-type"]) == (200, sent["media_type"])
    assert len(answer.content) > 1000


@pytest.mark.parametrize("sent", REFUSED, ids=[sent["client"] for sent in REFUSED])
def test_recorded_request_is_refused(http: httpx.Client, sent: dict[str, Any]) -> None:
    answer = http.post("/v1/audio/speech", json=sent["body"], headers=sent["headers"])

    error = answer.json()["error"]
    assert [answer.status_code, error["code"], error["param"]] == sent["refused"]


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_events_hold_consecutive_bytes_of_one_file(http: httpx.Client, kind: str) -> None:
    text = f"Server-sent events with the bytes of one {kind}."
    body = {"model": "tts-1", "voice": "me", "input": text, "response_format": kind, "stream_format": "sse"}
    for cache in ("MISS", "HIT"):
        answer = http.post("/v1/audio/speech", json=body)
        assert (answer.headers["content-type"], answer.headers["x-cache"]) == ("text/event-stream", cache)
        *deltas, done, end = answer.text.split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in deltas]
        assert {event["type"] for event in events} == {"speech.audio.delta"}
        assert all(line.startswith('data: {"') for line in (*deltas, done))
        usage = {"input_tokens": len(text), "output_tokens": 0, "total_tokens": len(text)}
        assert json.loads(done[6:]) == {"type": "speech.audio.done", "usage": usage}
        assert end == ""
        data = b"".join(b64decode(event["audio"]) for event in events)
        assert not data.startswith(b"ID3")
        check_tone(data, kind, text)
        wait_until_stored(http, answer.headers)


def test_sample_rate_is_that_of_the_request(http: httpx.Client) -> None:
    body = {"voice": "me", "input": "At another rate.", "response_format": "wav", "sample_rate": 16_000}
    answers = [http.post("/v1/audio/speech", json=body).content for _ in range(2)]
    for data in answers:
        samples, rate = read_wav(data)
        assert (rate, len(samples)) == (16_000, round(16_000 * SECONDS_PER_CHARACTER * len(body["input"])))  # type: ignore[arg-type]


# -- voices ---------------------------------------------------------------------------------------------------


def test_voices_are_listed_by_name_where_it_is_unique(served: Served) -> None:
    with served.client(served.new_key()) as http:
        register(http, name="me")
        doubles = [register(http, name="double") for _ in range(2)]
        listed = http.get("/v1/audio/voices").json()
    assert [voice["id"] for voice in listed["voices"]] == ["me", *doubles]
    assert [voice["name"] for voice in listed["voices"]] == ["me", "double", "double"]
    assert [voice["voice_id"] for voice in listed["data"]][1:] == doubles


def test_alias_never_shadows_a_voice(served: Served) -> None:
    with served.client(served.new_key()) as http, connect(served, http.headers["authorization"][7:]) as client:
        me = register(http, name="me")
        assert http.put("/v1/aliases/onyx", json={"voice": "me"}).json()["voice_id"] == me
        assert http.put("/v1/aliases/me", json={"voice": me}).json()["error"]["code"] == "alias_taken"
        assert http.put(f"/v1/aliases/{me}", json={"voice": me}).json()["error"]["code"] == "invalid_field"
        onyx = register(http, name="onyx")
        spoken = client.audio.speech.with_raw_response.create(model="tts-1", voice="onyx", input="Who is it?")
        assert spoken.headers["x-voice-id"] == onyx
        assert http.delete("/v1/aliases/onyx").status_code == 204
        assert http.delete("/v1/aliases/onyx").status_code == 404
        assert http.get("/v1/aliases").json() == []


def test_lists_need_a_key_by_default(served: Served) -> None:
    for path in ("/v1/models", "/v1/models/tts-1", "/v1/audio/models", "/v1/audio/voices"):
        assert httpx.get(f"{served.url}{path}").status_code == 401


def test_voice_is_created_and_deleted_by_the_official_client(served: Served) -> None:
    with connect(served, served.new_key()) as client:
        sample = ("me.wav", RECORDING, "audio/wav")
        voice = client.audio.voices.create(name="me", audio_sample=sample, consent="self")
        assert (voice.object, voice.name, voice.created_at > 0) == ("audio.voice", "me", True)
        check_tone(client.audio.speech.create(model="tts-1", voice={"id": voice.id}, input="Hi.").content, "mp3", "Hi.")
        with pytest.raises(openai.NotFoundError, match="no such recording of consent"):
            client.audio.voices.create(name="me", audio_sample=sample, consent="cons_1")
        assert client.audio.voices.delete(voice.id).deleted
        with pytest.raises(openai.NotFoundError, match="no voices yet"):
            client.audio.speech.create(model="tts-1", voice=voice.id, input="Hi.")


def test_open_lists_have_the_names_of_one_account(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server, server.client() as http, server.admin as admin:
        register(http, name="me")
        account_id = admin.get("/v1/accounts").json()[0]["account_id"]
    with serving(tmp_path / "home", {"AFTERWORDS_LIST_VOICES_OF": account_id}) as server:
        voices = httpx.get(f"{server.url}/v1/audio/voices").json()
        assert voices == {"object": "list", "data": [], "voices": [{"id": "me", "name": "me", "voice_id": None}]}
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "tone"
        unknown = httpx.get(f"{server.url}/v1/audio/voices", headers={"Authorization": "Bearer unknown"})
        assert unknown.status_code == 401
        assert httpx.get(f"{server.url}/v1/voices").status_code == 401


@pytest.mark.soak
def test_javascript_clients_speak(served: Served, tmp_path: Path) -> None:
    seen = run_node("openai_clients.mjs", ["openai@7", "ai@7", "@ai-sdk/openai@4"], tmp_path, served)
    assert seen["whole"] == 2 * 24_000 * SECONDS_PER_CHARACTER * len("From JavaScript.")
    assert seen["streamed"] == 2 * 24_000 * SECONDS_PER_CHARACTER * len("Streamed to JavaScript.")
    assert seen["models"] == ["tone", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert (seen["error"]["isNotFound"], seen["error"]["code"], seen["error"]["hasId"]) == (
        True,
        "voice_not_found",
        True,
    )
    assert seen["aiSdk"]["mediaType"] == "audio/mpeg"
    assert seen["aiSdk"]["size"] > 5_000


# -- consents and batches -------------------------------------------------------------------------------------


def test_consent_is_kept_for_a_voice_until_it_is_deleted(served: Served) -> None:
    key = served.new_key()
    with connect(served, key) as client, served.client(key) as http:
        consents = client.audio.voice_consents
        made = [consents.create(name=f"Ann {n}", language="en-US", recording=("ann.wav", RECORDING)) for n in range(3)]
        assert [consent.id for consent in consents.list(limit=2)] == [consent.id for consent in reversed(made)]
        assert consents.update(made[0].id, name="Ann").name == consents.retrieve(made[0].id).name == "Ann"
        sample = ("me.wav", RECORDING)
        voice = client.audio.voices.create(name="ann", audio_sample=sample, consent=made[0].id)
        shown = http.get(f"/v1/voices/{voice.id}").json()
        wav = http.get(f"/v1/audio/voice_consents/{made[0].id}/audio").content
        assert shown["consent"]["kind"] == "granted"
        kept = {"id": made[0].id, "name": "Ann", "sha256": sha256(wav).hexdigest()}
        assert shown["metadata"] == {"consent_recording": kept}
        assert consents.delete(made[0].id).deleted
        with pytest.raises(openai.NotFoundError):
            consents.retrieve(made[0].id)
        with pytest.raises(openai.NotFoundError):
            client.audio.voices.create(name="bob", audio_sample=sample, consent=made[0].id)
        assert http.get(f"/v1/voices/{voice.id}").json()["metadata"]["consent_recording"] == kept
        with pytest.raises(openai.UnprocessableEntityError):
            client.audio.voices.create(name="bob", audio_sample=sample, consent="yes")
    with connect(served) as other, pytest.raises(openai.NotFoundError):
        other.audio.voice_consents.retrieve(made[1].id)


def test_consent_that_is_deleted_while_it_is_read_is_404(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SqlStore.read_consent

    async def delete_first(store: SqlStore, consent_id: str, *, account_id: str) -> bytes | None:
        await store.remove_consent(consent_id, account_id=account_id)
        return await read(store, consent_id, account_id=account_id)

    monkeypatch.setattr(SqlStore, "read_consent", delete_first)
    with httpx.Client(base_url=in_process.url, headers={"Authorization": f"Bearer {in_process.key}"}) as http:
        form, files = {"name": "Ann", "language": "en"}, {"recording": ("ann.wav", RECORDING)}
        made = http.post("/v1/audio/voice_consents", data=form, files=files).json()
        answer = http.get(f"/v1/audio/voice_consents/{made['id']}/audio")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "consent_not_found")


def test_batch_speaks_each_text_or_says_why_not(http: httpx.Client) -> None:
    items: list[dict[str, Any]] = [
        {"input": "The first of a batch."},
        {"input": "The second, in another voice.", "voice": "another"},
        {"input": "The third, faster.", "response_format": "pcm", "speed": 2.0, "voice": "alloy"},
        {"input": "fault-fail in a batch"},
        {"input": "The first of a batch.", "unknown": 1},
    ]
    answer = http.post("/v1/audio/speech/batch", json={"items": items, "speaker": "me"}).json()
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (5, 3, 2)
    results = answer["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
    assert [result["media_type"] for result in results] == ["audio/wav", None, "audio/pcm", None, "audio/wav"]
    check_tone(b64decode(results[0]["audio_data"]), "wav", items[0]["input"])
    assert len(b64decode(results[2]["audio_data"])) == 2 * round(24_000 * SECONDS_PER_CHARACTER * 18 / 2)
    assert results[0]["audio_data"] == results[4]["audio_data"]
    assert "no such voice" in results[1]["error"]
    assert results[0]["usage"] == {"input_tokens": 21, "output_tokens": 0, "total_tokens": 21}
    invalid: list[list[dict[str, Any]]] = [[], 33 * items[:1], [{}]]
    for wrong in invalid:
        assert http.post("/v1/audio/speech/batch", json={"items": wrong}).status_code in (400, 422)


def test_each_text_of_a_batch_counts_for_the_rate(limited: InProcess) -> None:
    items = [{"input": f"Text {number}."} for number in range(3)]  # the voice was a request, too
    with httpx.Client(base_url=limited.url, headers={"Authorization": f"Bearer {limited.key}"}) as http:
        results = http.post("/v1/audio/speech/batch", json={"items": items, "voice": "me"}).json()["results"]
    assert [result["status"] for result in results] == ["success", "success", "error"]
    assert "requests for this minute" in results[2]["error"]


def test_disconnect_while_a_text_is_submitted_cancels_it(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, receive = Synthesis.submit, RequestContext.receive
    is_submitted = threading.Event()
    has_left = False

    async def see(context: RequestContext) -> Message:
        nonlocal has_left
        message = await receive(context)
        has_left = has_left or message["type"] == "http.disconnect"
        return message

    async def linger(*args: Any, **options: Any) -> Any:
        result = await submit(*args, **options)
        is_submitted.set()
        while not has_left:
            await asyncio.sleep(0.01)
        for _ in range(10):  # until the request is cancelled
            await asyncio.sleep(0)
        return result

    monkeypatch.setattr(Synthesis, "submit", linger)
    monkeypatch.setattr(RequestContext, "receive", see)
    body = {"items": [{"input": SLOW}], "voice": "me"}
    with httpx.Client(base_url=in_process.url, headers={"Authorization": f"Bearer {in_process.key}"}) as http:
        with http.stream("POST", "/v1/audio/speech/batch", json=body):
            assert is_submitted.wait(60)
        wait_until(
            lambda: [job["status"] for job in http.get("/v1/jobs").json()] == ["cancelled"], what="the cancellation"
        )
        assert http.get("/v1/usage").json()["characters"] == 0
