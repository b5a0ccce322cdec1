"""Import what Cloudflare's own tools wrote: d1.sql and kv.json are outputs of wrangler 4.86 with miniflare."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from afterwords.errors import FileError, InvalidInputError, ServerSetupError
from afterwords.server import load_settings
from afterwords.server.cache_key import cache_key
from afterwords.server.cloudflare.importer import UNKNOWN_FILES, ImportResult, import_cloudflare
from afterwords.server.settings import Settings
from afterwords.testing.running import RunningServer
from tests.cli.program import run
from tests.e2e.served import RECORDING
from tests.error_codes import has_code
from tests.postgres import PostgresServer

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
D1, KV = HERE / "d1.sql", HERE / "kv.json"
OLD_KEY = "aw_old-key-of-the-first-account"
VOICE, STEREO, LOST = (f"0a000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))
JOB, PENDING, FAILED, SILENT, ORPHAN = (f"0b000000-0000-4000-8000-00000000000{number}" for number in range(1, 6))
TEXT = "Hello there."


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def wav(n_samples: int) -> bytes:
    file = BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(n_samples) / 9), 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture
def r2(tmp_path: Path) -> Path:
    """Return a copy of a bucket: of five objects that rows name, two are missing or damaged."""
    stereo = BytesIO()
    samples, rate = soundfile.read(BytesIO(RECORDING))
    soundfile.write(stereo, np.stack([samples, samples], axis=1), rate, format="WAV", subtype="PCM_U8")
    objects = {
        f"voices/{VOICE}/ref.wav": RECORDING,
        f"voices/{STEREO}/ref.wav": stereo.getvalue(),
        f"voices/{VOICE}/cache/{cache_key(TEXT, lang='en', backend='qwen3-1.7b')}.wav": wav(8000),
        f"voices/{VOICE}/cache/{64 * '0'}.wav": b"not a recording",
        f"jobs/{JOB}.wav": wav(9000),
        "jobs/0b000000-0000-4000-8000-00000000ffff.wav": wav(100),
    }
    for path, data in objects.items():
        file = tmp_path / "r2" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "r2"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", backends="tone")


async def run_import(settings: Settings, r2: Path, **options: Any) -> ImportResult:
    files: dict[str, Any] = {"d1": D1, "kv": KV, "r2": str(r2)}
    return await import_cloudflare(settings, **(files | options))


def rows(settings: Settings) -> list[str]:
    with closing(sqlite3.connect(settings.folder / "afterwords.db")) as database:
        return [line for line in database.iterdump() if "storage_marks" not in line and '"sqlite_sequence"' not in line]


@contextmanager
def old_client(settings: Settings, *, key: str = OLD_KEY) -> Iterator[httpx.Client]:
    """Run a server on the imported data, and yield a client with an old key."""
    with (
        RunningServer(settings.home) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client,
    ):
        yield client


async def test_import_counts_and_lists_what_it_found(settings: Settings, r2: Path) -> None:
    result = await run_import(settings, r2)
    assert result.new == {"accounts": 2, "keys": 2, "customers": 1, "voices": 2, "cache": 1, "jobs": 4}
    assert result.copied_files == 4
    assert result.findings.by_problem == {
        "names in KV that are not the hash of a key": ["config"],
        "tables that are not known": ["feedback"],
        "voices without their metadata, which is not a JSON object": [STEREO],
        "voices without their recording, not imported": [LOST],
        "audio that is not a WAV file (not_wav)": [f"voices/{VOICE}/cache/{64 * '0'}.wav"],
        "pending jobs, imported as failed": [PENDING],
        "audio that is missing": [f"jobs/{SILENT}.wav"],
        "jobs of voices that are not imported": [ORPHAN],
        "objects that no row names, not imported": ["jobs/0b000000-0000-4000-8000-00000000ffff.wav"],
    }


async def test_old_key_lists_voices_and_plays_cached_audio(settings: Settings, r2: Path) -> None:
    await run_import(settings, r2)
    with old_client(settings) as client:
        (listed,) = client.get("/v1/voices").json()
        assert (listed["voice_id"], listed["name"], listed["backend"]) == (
            VOICE,
            'My "own" voice; it\'s me',
            "qwen3-1.7b",
        )
        voice = client.get(f"/v1/voices/{VOICE}").json()
        assert voice["ref_text"] == "First line.\nSecond line; with 'quotes'."
        assert voice["metadata"] == {"mood": "calm"}
        for body in ({}, {"backend": "qwen3-1.7b"}):  # which this server does not offer
            hit = client.post("/v1/synthesize", json={"voice_id": VOICE, "text": TEXT, **body})
            assert (hit.status_code, hit.headers["x-cache"], hit.content) == (200, "HIT", wav(8000))
        assert client.get(f"/v1/jobs/{JOB}/audio").content == wav(9000)
        states = {job["job_id"]: (job["status"], job["char_count"]) for job in client.get("/v1/jobs").json()}
        assert states == {JOB: ("ready", 23), PENDING: ("failed", 7), SILENT: ("failed", 40)}
        assert client.get(f"/v1/voices/{STEREO}").status_code == 404  # of the other account
        spoken = client.post(
            "/v1/synthesize", json={"voice_id": VOICE, "text": "New words."}, headers={"Prefer": "wait=60"}
        )
        assert (spoken.status_code, spoken.headers["x-backend"]) == (200, "tone")


async def test_second_import_changes_nothing(settings: Settings, r2: Path) -> None:
    await run_import(settings, r2)
    before = rows(settings)
    result = await run_import(settings, r2)
    assert (sum(result.new.values()), result.n_present, result.copied_files) == (0, 10, 0)
    assert rows(settings) == before


async def test_repeated_import_brings_what_was_missing(settings: Settings, r2: Path) -> None:
    await run_import(settings, r2)
    (r2 / f"voices/{LOST}").mkdir()
    (r2 / f"voices/{LOST}/ref.wav").write_bytes(RECORDING)
    assert (await run_import(settings, r2)).new["voices"] == 1


async def test_dry_run_writes_nothing(settings: Settings, r2: Path) -> None:
    result = await run_import(settings, r2, is_dry_run=True)
    assert (result.new["voices"], result.copied_files) == (2, 4)
    assert not settings.folder.exists() or not any(path.is_file() for path in settings.folder.rglob("*"))


async def test_import_in_place_copies_only_what_must_change(settings: Settings, r2: Path) -> None:
    in_place = load_settings(home=settings.home, backends="tone", storage_url=str(r2))
    before = {path: path.read_bytes() for path in r2.rglob("*.wav")}
    result = await run_import(in_place, r2)
    assert result.copied_files == 1  # the stereo recording, in the form that servers store
    assert {path: path.read_bytes() for path in before} == before
    assert (r2 / f"voices/{STEREO}/ref-imported.wav").is_file()
    assert not (r2 / "owner.json").exists()  # it would remove the files that no row names
    for path in result.findings.by_problem[UNKNOWN_FILES]:
        (r2 / path).unlink()
    await run_import(in_place, r2)
    assert (r2 / "owner.json").is_file()


async def test_other_file_at_the_path_is_kept(settings: Settings, r2: Path) -> None:
    """A storage into which the bucket was copied before has the stereo recording at the path of the canonical one."""
    shutil.copytree(r2, settings.folder / "blobs")
    result = await run_import(settings, r2)
    assert result.new["voices"] == 2
    with old_client(settings, key="aw_old-key-of-the-second-account") as client:
        body = {"voice_id": STEREO, "text": TEXT}
        assert client.post("/v1/synthesize", json=body, headers={"Prefer": "wait=60"}).status_code == 200


async def test_float_audio_becomes_pcm(settings: Settings, r2: Path) -> None:
    file = BytesIO()
    soundfile.write(file, np.full(8000, 0.25, np.float32), 8000, format="WAV", subtype="FLOAT")
    (r2 / f"jobs/{JOB}.wav").write_bytes(file.getvalue())
    await run_import(settings, r2)
    samples, _ = soundfile.read(settings.folder / f"blobs/jobs/{JOB}.wav", dtype="int16")
    assert (len(samples), samples[0]) == (8000, 8192)


async def test_key_with_an_expiration_expires(settings: Settings, r2: Path, tmp_path: Path) -> None:
    entries = json.loads(KV.read_text())
    entries[0]["expiration"] = 1_800_000_000
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(entries))
    await run_import(settings, r2, kv=keys)
    assert any(line.startswith('INSERT INTO "keys"') and "2027-01-15 08:00:00" in line for line in rows(settings))


async def test_customer_of_two_keys_is_imported_once(settings: Settings, r2: Path, tmp_path: Path) -> None:
    dump = tmp_path / "changed.sql"
    second = "INSERT INTO \"subscriptions\" VALUES(2,'{}','cus_test2','b@example.com','active');\n"
    text = D1.read_text("utf-8").replace("stripe_customer_id TEXT UNIQUE", "stripe_customer_id TEXT")
    dump.write_text(
        text + "\n" + second.format(json.loads(KV.read_text())[1]["name"]).replace("cus_test2", "cus_test1")
    )
    for _ in range(2):
        result = await run_import(settings, r2, d1=dump)
    assert result.new["customers"] == 0


async def test_dry_run_reads_an_empty_postgres(settings: Settings, r2: Path, postgres: PostgresServer) -> None:
    url = postgres.url(postgres.create_database())
    empty = load_settings(home=settings.home, backends="tone", database_url=url)
    assert (await run_import(empty, r2, is_dry_run=True)).new["voices"] == 2


async def test_import_into_postgres(settings: Settings, r2: Path, postgres: PostgresServer) -> None:
    url = postgres.url(postgres.create_database())
    remote = load_settings(home=settings.home, backends="tone", database_url=url)
    assert (await run_import(remote, r2)).new["jobs"] == 4
    assert (await run_import(remote, r2)).n_present == 10


async def test_voice_that_was_deleted_here_stays_deleted(settings: Settings, r2: Path) -> None:
    await run_import(settings, r2)
    with old_client(settings) as client:
        assert client.delete(f"/v1/voices/{VOICE}").status_code == 204
    result = await run_import(settings, r2)
    assert result.findings.by_problem["voices that were deleted here, not imported again"] == [VOICE]
    assert (result.new["voices"], result.new["cache"], result.new["jobs"]) == (0, 0, 0)


async def test_running_server_refuses_an_import(settings: Settings, r2: Path) -> None:
    with RunningServer(settings.home), pytest.raises(ServerSetupError, check=has_code("server_running")):
        await run_import(settings, r2)


async def test_storage_of_another_database_is_refused(settings: Settings, r2: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    await run_import(load_settings(home=tmp_path / "first", storage_url=storage), r2)
    with pytest.raises(ServerSetupError, check=has_code("storage_refused")):
        await run_import(load_settings(home=tmp_path / "second", storage_url=storage), r2)


def cut(text: str) -> str:
    return text[:-30]


def without_tables(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if line.startswith(("PRAGMA", "INSERT")))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (cut, "it ends inside a statement"),
        (without_tables, "it has rows but not their tables"),
        (lambda text: text.replace("ref_audio_key TEXT", "other TEXT"), "has no column ref_audio_key"),
        (lambda text: text.replace("voices", "people"), "it has no table voices"),
        (lambda text: text + "\nATTACH '/tmp/other.db' AS other;", "SQLite refuses a statement at line"),
        (lambda text: text + "\nSELECT load_extension('evil');", "SQLite refuses a statement at line"),
        (lambda text: text.replace("'b41ee19bca", "'zzzz"), "name it with --owner-column"),
    ],
)
async def test_unusable_dump_is_refused(settings: Settings, r2: Path, tmp_path: Path, change: Any, why: str) -> None:
    dump = tmp_path / "changed.sql"
    dump.write_text(change(D1.read_text("utf-8")), "utf-8")
    with pytest.raises(InvalidInputError) as caught:
        await run_import(settings, r2, d1=dump)
    assert why in str(caught.value) or why in (caught.value.hint or "")
    assert not (settings.folder / "afterwords.db").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"key": 1}]', "7"])
async def test_unusable_list_of_keys_is_refused(settings: Settings, r2: Path, tmp_path: Path, content: str) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(content)
    with pytest.raises(InvalidInputError, match="not a list of keys"):
        await run_import(settings, r2, kv=keys)


async def test_keys_with_values_are_read(settings: Settings, r2: Path, tmp_path: Path) -> None:
    names = [entry["name"] for entry in json.loads(KV.read_text())]
    values = {name: {"value": json.dumps({"label": "phone"})} for name in names}
    keys = tmp_path / "keys.json"
    keys.write_text(f"\n{json.dumps(values, indent=2)}\n\nSuccess!\n")
    await run_import(settings, r2, kv=keys)
    assert any("'phone'" in line for line in rows(settings))


async def test_key_outside_kv_is_revoked(settings: Settings, r2: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("[]")
    result = await run_import(settings, r2, kv=keys)
    assert len(result.findings.by_problem["keys that own voices but are not in KV, imported as revoked"]) == 2


async def test_missing_folder_is_not_created(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        await run_import(settings, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_command_prints_counts_and_findings(r2: Path) -> None:
    done = run("import-cloudflare", "--d1", D1, "--kv", KV, "--r2", r2, "--dry-run")
    assert done.code == 0, done.err
    assert "It would import: accounts 2, keys 2, voices 2, jobs 4, cached texts 1" in done.err
    assert "voices without their recording, not imported (1)" in done.err
