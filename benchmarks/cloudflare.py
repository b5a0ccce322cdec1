"""Measure an import of the hosted service: 10,000 voices and 100,000 jobs with short audio, on this disk."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import numpy as np

from afterwords.audio.wav import canonical_wav
from afterwords.server import load_settings
from afterwords.server.cloudflare.importer import import_cloudflare

N_VOICES = 10_000
JOBS_PER_VOICE = 10
VOICES_PER_KEY = 10


def write_export(folder: Path, n_voices: int) -> None:
    """Write a dump, a list of keys and a bucket: recordings of 5 s, of which each job has one tenth."""
    tone = (0.1 * np.sin(np.arange(5 * 8000) / 9)).astype(np.float32)
    recording, audio = canonical_wav(tone, 8000), canonical_wav(tone[:4000], 8000)
    hashes = [sha256(b"aw_%d" % number).hexdigest() for number in range(-(-n_voices // VOICES_PER_KEY))]
    (folder / "kv.json").write_text(json.dumps([{"name": name} for name in hashes]))
    with (folder / "d1.sql").open("w") as dump:
        dump.write(
            "PRAGMA defer_foreign_keys=TRUE;\n"
            "CREATE TABLE voices (voice_id TEXT PRIMARY KEY, owner TEXT, name TEXT, backend TEXT, ref_text TEXT, "
            "lang TEXT, family TEXT, ref_audio_key TEXT, created_at TEXT, metadata TEXT);\n"
            "CREATE TABLE jobs (job_id TEXT PRIMARY KEY, voice_id TEXT, status TEXT, audio_key TEXT, error TEXT, "
            "created_at TEXT, completed_at TEXT, char_count INTEGER);\n"
        )
        for number in range(n_voices):
            voice_id = str(UUID(int=number))
            path = folder / f"r2/voices/{voice_id}/ref.wav"
            path.parent.mkdir(parents=True)
            path.write_bytes(recording)
            row = (voice_id, hashes[number // VOICES_PER_KEY], f"voice {number}", "qwen3-1.7b", "Some words.", "en")
            values = ",".join(f"'{value}'" for value in row)
            dump.write(
                f"INSERT INTO \"voices\" VALUES({values},NULL,'voices/{voice_id}/ref.wav',"
                "'2026-03-01T10:00:00.000Z','{}');\n"
            )
        (folder / "r2/jobs").mkdir()
        for number in range(JOBS_PER_VOICE * n_voices):
            job_id, speaker = UUID(int=number), UUID(int=number % n_voices)
            (folder / f"r2/jobs/{job_id}.wav").write_bytes(audio)
            dump.write(
                f"INSERT INTO \"jobs\" VALUES('{job_id}','{speaker}','ready','jobs/{job_id}.wav',NULL,"
                "'2026-03-01T10:00:00.000Z','2026-03-01T10:00:01.000Z',40);\n"
            )


def measure(n_voices: int = N_VOICES) -> tuple[float, float]:
    """Return the seconds of an import, and of a second one, which finds everything present."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_export(folder, n_voices)
        settings = load_settings(home=folder / "home")
        times = []
        for _ in range(2):
            started = time.perf_counter()
            result = asyncio.run(
                import_cloudflare(settings, d1=folder / "d1.sql", kv=folder / "kv.json", r2=str(folder / "r2"))
            )
            times.append(time.perf_counter() - started)
            assert not result.findings.by_problem, result.findings
    return times[0], times[1]


if __name__ == "__main__":
    n_voices = int(sys.argv[1]) if len(sys.argv) > 1 else N_VOICES
    first, second = measure(n_voices)
    print(f"{n_voices:,} voices, {JOBS_PER_VOICE * n_voices:,} jobs: {first:.0f} s; again: {second:.0f} s", end="")
    print(f"; load {os.getloadavg()[0]:.0f}")
