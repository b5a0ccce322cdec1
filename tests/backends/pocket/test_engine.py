"""The engine on a tiny checkpoint: the contract of all engines, the package as a reference, and its own behavior.

Importing the package takes seconds, so all that needs it is in this file.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pocket_tts")

import torch
import yaml
from pocket_tts import TTSModel

from afterwords.audio.audio import Audio, decode
from afterwords.audio.effects import fade_from
from afterwords.audio.wav import Samples
from afterwords.backends import memory, registry
from afterwords.backends.base import Available, Engine, InvalidPromptError, Unavailable
from afterwords.backends.pocket import engine as engine_module
from afterwords.backends.pocket import model as model_module
from afterwords.backends.pocket import utterance
from afterwords.backends.pocket.engine import LIMIT_S, PAUSE_WITHIN_S, VOICES, PocketEngine, _shortened
from afterwords.backends.pocket.model import PocketModel, State
from afterwords.backends.pocket.prompt import PocketPrompt
from afterwords.backends.pocket.text import Sentence
from afterwords.errors import (
    BackendUnavailableError,
    ModelError,
    RecordingError,
    SynthesisError,
    UnsupportedLangError,
    pip_install,
)
from afterwords.testing import EngineContract
from afterwords.testing.engine_contract import SHORT_TEXT, TEXT
from afterwords.weights.catalog import CHECKPOINTS
from afterwords.weights.download import pull
from scripts.make_pocket_tiny import make_checkpoint
from tests.backends.qwen3.contract import run_concurrently
from tests.cli.program import environment, run, run_and_interrupt
from tests.conftest import READER
from tests.e2e.invariants import worker_process
from tests.e2e.served import register, serving, submit_text, wait_for_job, wait_until
from tests.error_codes import has_code
from tests.weights.loopback_hub import LoopbackHub, add_pocket

WEIGHTS, TOKENIZER = (source.required[0] for source in CHECKPOINTS["pocket"].sources)
# Together they have more than 50 tokens, so that the package speaks them one by one, as the engine does.
LONG_TEXT = (
    "The harbour was quiet when they arrived, and the boats were gone. "
    "Only the gulls on the roof of the old house seemed to notice that the lamp was lit."
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of models, set as AFTERWORDS_MODELS, with a checkpoint of 0.4 MB."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "pocket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_MODELS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def here(models: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # after `home`, which clears it
    monkeypatch.setenv("AFTERWORDS_MODELS", str(models))


def load_model(folder: Path) -> PocketModel:
    return PocketModel(folder / WEIGHTS, folder / TOKENIZER)


class TestPocket(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models: Path) -> Iterator[Engine]:
        assert (models / "pocket").is_dir()
        engine = PocketEngine()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_module, "MIN_FRAMES_BEFORE_END", 20)  # random weights end sentences early
            yield engine
        engine.close()

    def test_prompt_is_as_small_as_latents(self, prompt: bytes) -> None:
        n_frames = 8 * 12.5 + 1  # a pause of one frame follows the recording
        assert len(prompt) <= 2 * 8 * n_frames + 300  # 8 latents of this checkpoint

    def test_prompt_of_another_version_is_refused(self, engine: Engine, prompt: bytes) -> None:
        outdated = prompt.replace(engine.prompt_version.encode(), engine.prompt_version.encode()[:-1] + b"-")
        assert outdated != prompt
        for bad in (outdated, b"", prompt[:20], prompt[:-1], b"\xff" * 40, b"{" * 200_000):
            with pytest.raises(InvalidPromptError):
                engine.describe(bad)
            with pytest.raises(SynthesisError) as caught:
                self.speak(engine, self.task(engine, bad))
            assert isinstance(caught.value.__cause__, InvalidPromptError)  # so the caller makes it again
        narrow = PocketPrompt(np.zeros((5, 7), np.float16)).to_bytes(engine.prompt_version)
        with pytest.raises(SynthesisError, match="another width"):
            self.speak(engine, self.task(engine, narrow))

    @pytest.mark.parametrize("similarity", [float("nan"), float("inf"), -5.0])
    def test_prompt_with_an_impossible_similarity_is_refused(self, engine: Engine, similarity: float) -> None:
        prompt = PocketPrompt(np.zeros((5, 8), np.float16), similarity).to_bytes(engine.prompt_version)
        with pytest.raises(InvalidPromptError, match="not a cosine"):
            engine.describe(prompt)

    def test_last_voices_are_kept(self, engine: PocketEngine) -> None:
        engine.forget_voices()
        for n in range(VOICES + 1):
            prompt = PocketPrompt(np.full((5, 8), n, np.float16)).to_bytes(engine.prompt_version)
            next(engine.synthesize(self.task(engine, prompt, text="A")))
        assert engine._voice.cache_info().currsize == VOICES

    def test_voice_that_is_forgotten_while_it_is_made_is_not_kept(
        self, engine: PocketEngine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.load("pocket")
        assert engine._model is not None
        make, is_making, may_go_on = engine._model.voice, threading.Event(), threading.Event()

        def make_slowly(latents: np.ndarray) -> State:
            is_making.set()
            assert may_go_on.wait(60)
            return make(latents)

        monkeypatch.setattr(engine._model, "voice", make_slowly)
        engine.forget_voices()
        speaking = threading.Thread(target=self.speak, args=(engine, self.task(engine, prompt, text="A")))
        speaking.start()
        assert is_making.wait(60)
        engine.forget_voices()
        may_go_on.set()
        speaking.join()
        assert engine._voice.cache_info().currsize == 0

    def test_unknown_language_is_refused(self, engine: Engine, prompt: bytes) -> None:
        task = self.task(engine, prompt).model_copy(update={"lang": "de"})
        with pytest.raises(UnsupportedLangError, match="it speaks en"):
            list(engine.synthesize(task))

    def test_concurrent_utterances_equal_single_ones(
        self, engine: PocketEngine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "_slots", threading.Semaphore(2))  # so that others wait, on any machine
        tasks = [self.task(engine, prompt, text=SHORT_TEXT, seed=seed) for seed in range(4)]
        alone = [self.speak(engine, task) for task in tasks]
        together = run_concurrently([partial(self.speak, engine, task) for task in tasks])
        assert all(np.array_equal(one, many) for one, many in zip(alone, together, strict=True))
        assert not any(np.array_equal(one, other) for one, other in pairwise(alone))

    def test_slow_reader_does_not_keep_others_waiting(
        self, engine: PocketEngine, prompt: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "_slots", threading.Semaphore(1))
        slow = engine.synthesize(self.task(engine, prompt))
        next(slow)
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))
        assert list(slow)

    def test_closed_utterance_leaves_no_thread(self, engine: Engine, prompt: bytes) -> None:
        speech = engine.synthesize(self.task(engine, prompt, text=TEXT * 50))
        next(speech)
        assert "pocket" in {thread.name for thread in threading.enumerate()}
        speech.close()
        assert "pocket" not in {thread.name for thread in threading.enumerate()}

    def test_closing_the_engine_ends_utterances(self, engine: Engine, prompt: bytes) -> None:
        speech = engine.synthesize(self.task(engine, prompt, text=TEXT * 50))
        next(speech)
        engine.close()
        with pytest.raises(SynthesisError, match="the engine was closed"):
            list(speech)

    def test_threads_of_torch_are_restored(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_module, "_threads_before", 3)  # another number than on this machine
        engine.load("pocket")
        assert torch.get_num_threads() == 1
        engine.close()
        assert torch.get_num_threads() == 3

    def test_failure_of_the_model_is_a_typed_error(self, engine: PocketEngine, prompt: bytes) -> None:
        engine.load("pocket")
        assert engine._model is not None
        bias = engine._model._flow.out_norm.bias
        kept = bias.clone()
        bias.data.fill_(torch.nan)
        with pytest.raises(SynthesisError, match="it raised ArithmeticError"):
            self.speak(engine, self.task(engine, prompt))
        bias.data.copy_(kept)
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))


# -- the package as a reference -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose sentences end."""
    return make_checkpoint(tmp_path_factory.mktemp("ending"))


@pytest.fixture(scope="module")
def model(ending: Path) -> PocketModel:
    return load_model(ending)


@pytest.fixture(scope="module")
def package(ending: Path) -> TTSModel:
    """Return the model that the package loads from the same files."""
    config = yaml.safe_load((ending / WEIGHTS).with_name("config.yaml").read_text())
    config["weights_path"] = str(ending / WEIGHTS)
    path = ending / "package.yaml"
    path.write_text(yaml.safe_dump(config))
    package = TTSModel.load_model(config=path)
    package.max_decoder_frames_per_call = 1  # or its sound depends on the load of the machine, by 2e-6
    return package


def spoken(model: PocketModel, latents: np.ndarray, text: str, seed: int) -> Samples:
    """Return the sound of sentences that follow each other without a pause, and without the fades after them."""
    sentences = [Sentence(part.strip(), 0) for part in text.split(". ")]
    slots = threading.Semaphore()
    chunks = utterance.PocketUtterance(model, model.voice(latents), sentences, seed=seed, slots=slots).sound()
    return np.concatenate([chunk for chunk in chunks if len(chunk) >= 1920])


def test_speech_equals_that_of_the_package_bit_by_bit(
    model: PocketModel, package: TTSModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    for text, seed in ((SHORT_TEXT, 1), (LONG_TEXT, 2)):
        grouped = spoken(model, latents, text, seed)
        with monkeypatch.context() as patch:
            patch.setattr(utterance, "FRAMES_PER_DECODE", (1,))
            before = torch.random.get_rng_state()
            ours = spoken(model, latents, text, seed)
            assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(seed)
        theirs = torch.cat(list(package.generate_audio_stream(model.voice(latents), text))).clamp(-1, 1).numpy()
        assert np.array_equal(ours, theirs)
        assert len(ours) < 1920 * model.n_tokens(text) * 12.5 / 3  # it ended by itself
        np.testing.assert_allclose(grouped, theirs, atol=1e-5)


def test_voice_equals_that_of_the_package(model: PocketModel, package: TTSModel) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    ours = model.voice(model.encode(sound))
    theirs = package.get_state_for_audio_prompt(torch.from_numpy(sound)[None])
    assert ours.keys() == theirs.keys()
    for layer, parts in ours.items():
        for name, part in parts.items():
            torch.testing.assert_close(part, theirs[layer][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "texts",
    [
        ["In the sun."],
        [
            "The boats were gone from the quiet harbour, and gulls sat on it.",
            "The boats were gone from the quiet harbour,",
            "and gulls sat on it.",
        ],
    ],
)
def test_endless_sentence_is_cut_and_its_parts_are_spoken(
    texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(make_checkpoint(tmp_path, ends=False))
    voice = model.voice(np.zeros((5, 8), np.float32))
    sentence = Sentence(texts[0], 0.45)
    sound = np.concatenate(
        list(utterance.PocketUtterance(model, voice, [sentence], seed=0, slots=threading.Semaphore()).sound())
    )
    n_frames = sum(math.ceil(12.5 * (model.n_tokens(text) / 3 + 2)) for text in texts)
    n_pauses_s = 0.45 * (1 if len(texts) == 1 else 2) + 0.05 * (len(texts) > 1)
    n_fades = len(texts) * len(fade_from(0.5, 24_000))
    assert len(sound) == 1920 * n_frames + round(24_000 * n_pauses_s) + n_fades
    assert ("its parts are spoken again" in caplog.text) == (len(texts) > 1)
    assert "did not end" in caplog.text
    assert "sun" not in caplog.text
    assert "boats" not in caplog.text


# -- weights --------------------------------------------------------------------------------------------------


def test_damaged_or_foreign_weights_are_named(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pocket"
    config = WEIGHTS.replace("model.safetensors", "config.yaml")
    for name, damage in (
        (WEIGHTS, b"cut"),
        (TOKENIZER, b"{}"),
        (config, b"- :"),
        (config, (models / "pocket" / config).read_bytes().replace(b"depth: 1", b"depth: 1\n    type: pointwise")),
        (config, (models / "pocket" / config).read_bytes().replace(b"num_layers: 2", b"num_layers: 1")),
    ):
        shutil.copytree(models / "pocket", folder, dirs_exist_ok=True)
        (folder / name).write_bytes(damage)
        with pytest.raises(ModelError, match="can't be loaded") as caught:
            load_model(folder)
        assert caught.value.hint == "afterwords models pull pocket --repair"


def test_loading_leaves_logging_as_it_was(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a program; pytest has its own
    load_model(models / "pocket")
    assert logging.getLogger().handlers == []


def test_missing_weights_are_not_replaced_by_others(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(models / "pocket", folder)
    (folder / WEIGHTS).rename(folder / "open.safetensors")
    config = (folder / WEIGHTS).with_name("config.yaml")
    config.write_text(f"weights_path_without_voice_cloning: {folder / 'open.safetensors'}\n{config.read_text()}")
    with pytest.raises(ModelError, match="FileNotFoundError"):
        load_model(folder)


# -- availability ---------------------------------------------------------------------------------------------


def test_listing_backends_does_not_import_the_package(models: Path) -> None:
    code = (
        "import sys; from afterwords.backends import registry\n"
        "print({b.name: b.is_available for b in registry.backends()}['pocket'], registry.choose('auto').name)\n"
        "assert not {'torch', 'pocket_tts', 'yaml'} & set(sys.modules)"
    )
    done = run(python=code, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.code, done.out) == (0, "True pocket\n"), done.err


def test_missing_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda name: (name != "pocket_tts" and find_spec(name)) or None)
    state = PocketEngine().availability()
    assert state == Unavailable("pocket-tts is not installed", pip_install("pocket"))


def test_wrong_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "version", lambda _: "5.1.0")
    engine = PocketEngine()
    reason = "pocket-tts 5.1 is installed, and afterwords needs 4.0"
    assert engine.availability() == Unavailable(reason, pip_install("pocket"))
    with pytest.raises(BackendUnavailableError, match=reason):
        engine.load("pocket")


@pytest.mark.parametrize(("limit", "fits"), [("1000000000", False), ("4000000000", True)])
def test_memory_decides_whether_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, fits: bool
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "memory.max",))
    state = PocketEngine().availability()
    assert isinstance(state, Available) == fits
    if isinstance(state, Unavailable):
        assert state.reason == "it needs 1.5 GB of memory, and this machine has 1.0 GB"
        assert "lite" in state.fix


def test_weights_that_are_not_pulled_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    assert PocketEngine().availability() == Unavailable(
        "The model pocket is not downloaded", "afterwords models pull pocket"
    )


# -- recordings -----------------------------------------------------------------------------------------------


def test_long_recording_is_cut_in_a_pause() -> None:
    rate = 24_000
    samples = np.random.default_rng(0).normal(0, 0.1, 60 * rate).astype(np.float32)
    at = round((LIMIT_S - 0.4 * PAUSE_WITHIN_S) * rate)
    samples[at : at + rate // 4] = 0
    assert at < len(_shortened(samples, rate)) < at + rate // 4
    short = samples[: 10 * rate]
    assert _shortened(short, rate) is short


def test_recording_without_speech_is_refused() -> None:
    with pytest.raises(RecordingError, check=has_code("no_voice")):
        _shortened(np.zeros(240_000, np.float32), 24_000)


# -- the way of the README ------------------------------------------------------------------------------------


def test_pulled_model_clones_and_speaks(
    ending: Path, home: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFTERWORDS_MODELS", raising=False)
    files = {name: (ending / WEIGHTS).with_name(name).read_bytes() for name in ("model.safetensors", "config.yaml")}
    add_pocket(hub, files, (ending / TOKENIZER).read_bytes())
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_accepted")
        pull("pocket")
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    reader = decode(READER)
    recording = Audio(reader.samples[: 8 * reader.sample_rate], reader.sample_rate).save(tmp_path / "me.wav")
    cloned = run("clone", recording, "--name", "me", "--consent", "public-domain", "--json")
    assert cloned.code == 0, cloned.err
    assert json.loads(cloned.out)["backend"] == "pocket"
    assert -1 <= json.loads(cloned.out)["likeness"]["similarity"] <= 1
    said = [run("say", SHORT_TEXT, "--voice", "me", "--seed", "3", "-o", "-") for _ in range(2)]
    assert [done.code for done in said] == [0, 0], said[0].err
    sound = [done.stdout.partition(b"data")[2] for done in said]  # the header states the time
    assert len(sound[0]) > 24_000
    assert sound[0] == sound[1]

    engine = registry.engine_for(registry.choose("pocket"))
    engine.close()
    make_checkpoint(home / "models" / "pocket", ends=False)  # other weights: the prompt is made again
    (home / "models" / "pocket" / "lock.json").unlink()
    again = run("say", SHORT_TEXT, "--voice", "me", "--seed", "3", "-o", "-")
    engine.close()
    assert again.code == 0, again.err
    assert again.stdout.partition(b"data")[2] != sound[0]


@pytest.mark.soak
def test_commands_of_the_readme_run_as_processes(
    ending: Path, home: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFTERWORDS_MODELS", raising=False)
    files = {name: (ending / WEIGHTS).with_name(name).read_bytes() for name in ("model.safetensors", "config.yaml")}
    add_pocket(hub, files, (ending / TOKENIZER).read_bytes())
    out = tmp_path / "hello.wav"
    for command in (
        ("models", "pull", "pocket"),
        ("clone", READER, "--name", "clone", "--consent", "self"),
        ("say", "Hello, this is my voice.", "--voice", "clone", "-o", out),
    ):
        done = run(*command, env={"HF_TOKEN": "hf_accepted"}, is_process=True)
        assert done.code == 0, done.err
        assert "TTS Model" not in done.err  # the package logs to the root logger
    assert "backend pocket" in run("clone", READER, "--name", "two", "--consent", "self", is_process=True).err
    assert decode(out).duration_s > 0.7


@pytest.mark.soak
def test_ctrl_c_ends_long_speech(models: Path, home: Path) -> None:
    assert run("clone", READER, "--name", "me", "--consent", "self", "--fast", is_process=True).code == 0
    command = ("say", TEXT * 60, "--seed", "1", "-o", "-", "--format", "pcm")
    code, stderr = run_and_interrupt(*command, env=environment())
    assert (code, stderr.splitlines()[-1]) == (130, b"Stopped.")


@pytest.mark.soak
def test_server_survives_cancels_deletions_and_kills(models: Path, tmp_path: Path) -> None:
    settings = {"AFTERWORDS_MODELS": str(models), "AFTERWORDS_BACKENDS": "pocket"}
    with serving(tmp_path / "server", settings) as served, served.client() as client:
        voice_id = register(client)
        submitted = [submit_text(client, voice_id, SHORT_TEXT, seed=seed) for seed in (1, 2, 3, 4)]
        jobs = [wait_for_job(client, job_id) for job_id in submitted]
        assert [job["status"] for job in jobs] == ["ready"] * 4
        sounds = {client.get(f"/v1/jobs/{job['job_id']}/audio").content for job in jobs}
        assert len(sounds) == 4
        assert min(map(len, sounds)) > 24_000

        def sound(job_id: str) -> bytes:
            assert wait_for_job(client, job_id)["status"] == "ready"
            return bytes(client.get(f"/v1/jobs/{job_id}/audio").content.partition(b"data")[2])

        def begin(text: str) -> str:
            job_id = submit_text(client, voice_id, text, seed=1)
            wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["step"] == "speaking")
            return job_id

        copy = register(client)
        assert sound(submit_text(client, copy, SHORT_TEXT, seed=1)) == sound(submitted[0])
        cancelled = begin(TEXT * 50)
        assert client.delete(f"/v1/jobs/{cancelled}").json()["status"] == "cancelled"
        deleted = register(client)
        lost = submit_text(client, deleted, TEXT, seed=1)
        client.delete(f"/v1/voices/{deleted}").raise_for_status()
        assert client.get(f"/v1/jobs/{lost}").status_code == 404
        killed = begin(TEXT * 50)
        worker_process(served).kill()
        again = sound(killed)
        assert not list((tmp_path / "server").rglob(f"*{deleted}*"))
        assert sound(submit_text(client, copy, TEXT * 50, seed=1)) == again


@pytest.mark.soak
def test_processes_that_prepare_a_voice_at_once_agree(models: Path, home: Path, tmp_path: Path) -> None:
    assert run("clone", READER, "--name", "me", "--consent", "self", "--backend", "lite", "--fast").code == 0
    say = partial(run, "say", SHORT_TEXT, "--backend", "pocket", "--seed", "3", "-o", "-", is_process=True)
    sounds = [done.stdout.partition(b"data")[2] for done in run_concurrently([say, say])]
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) > 24_000
