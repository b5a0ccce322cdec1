"""A server with a certificate: ElevenLabs' client for live text, which always uses TLS, and ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from elevenlabs import ElevenLabs
from elevenlabs.core.api_error import ApiError

from afterwords import AsyncClient, Client
from afterwords.backends.tone import SECONDS_PER_CHARACTER
from afterwords.errors import UnreachableError
from tests.e2e.served import Served, register, serving

pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated"
)  # their client reads them
TOKENS = ["Once upon ", "a time, there", " was a king.", " He", " had a voice."]
DURATION_S = SECONDS_PER_CHARACTER * len("".join(TOKENS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate for this machine, its key, and the authority that issued it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    files = {
        "AFTERWORDS_CERTFILE": str(folder / "certificate.pem"),
        "AFTERWORDS_KEYFILE": str(folder / "key.pem"),
    }
    with serving(folder / "home", files) as server:
        with server.client() as client:
            register(client, name="me")
        yield server


@pytest.fixture
def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))


def speak(served: Served, key: str, voice: str = "me") -> bytes:
    """Speak with ElevenLabs' own client."""
    client = ElevenLabs(base_url=f"{served.url}/elevenlabs", api_key=key)
    audio = client.text_to_speech.convert_realtime(
        voice, text=iter(TOKENS), model_id="eleven_flash_v2_5", output_format="pcm_24000"
    )
    return b"".join(audio)


@pytest.mark.usefixtures("trusted")
def test_client_of_elevenlabs_speaks_live_text(served: Served) -> None:
    assert served.url.startswith("https://")
    assert len(speak(served, served.key)) / 2 / 24_000 == pytest.approx(DURATION_S, abs=0.5)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(("key", "voice"), [("aw_" + "x" * 40, "me"), ("", "someone")], ids=["key", "voice"])
def test_client_of_elevenlabs_raises_its_error(served: Served, key: str, voice: str) -> None:
    with pytest.raises(ApiError) as refused:
        speak(served, key or served.key, voice)
    assert refused.value.status_code == 1008
    assert ("API key" if key else "no such voice") in str(refused.value.body)


@pytest.mark.usefixtures("trusted")
def test_our_clients_trust_the_authority(served: Served) -> None:
    async def speak_async() -> float:
        async with AsyncClient(served.url, api_key=served.key) as client:
            return (await (await client.speak(TOKENS, voice="me")).audio()).duration_s

    with Client(served.url, api_key=served.key) as client:
        assert client.speak(TOKENS, voice="me").audio().duration_s == pytest.approx(DURATION_S, abs=0.5)
        assert [job.voice_id for job in client.jobs.list()]
    assert asyncio.run(speak_async()) == pytest.approx(DURATION_S, abs=0.5)


def test_our_client_refuses_an_unknown_authority(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.004)
    with Client(served.url, api_key=served.key) as client, pytest.raises(UnreachableError, match="not trusted"):
        client._session.open_socket()
