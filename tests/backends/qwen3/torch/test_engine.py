"""The engine on a tiny checkpoint: the contract of all engines, and its own behavior."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from afterwords.backends import memory
from afterwords.backends.base import Available, Engine, Reference, Unavailable
from afterwords.backends.qwen3 import ENCODER_VERSION
from afterwords.backends.qwen3.base import check_memory
from afterwords.backends.qwen3.torch import engine as engine_module
from afterwords.backends.qwen3.torch.codec_encoder import CodecEncoder
from afterwords.backends.qwen3.torch.engine import Qwen3Large, Qwen3Small
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.speaker import SpeakerEncoder
from afterwords.errors import MissingExtraError, ModelError, SynthesisError, pip_install
from afterwords.models import SpeechTask
from afterwords.testing.engine_contract import SHORT_TEXT
from tests.backends.qwen3.contract import Qwen3Contract, linked_models, run_concurrently, tensors
from tests.error_codes import has_code


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of models, set as AFTERWORDS_MODELS."""
    with linked_models(tmp_path_factory.mktemp("models"), checkpoint, "qwen3-1.7b", "qwen3-0.6b") as folder:
        yield folder


@pytest.fixture(autouse=True)
def here(models: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # after `home`, which clears it
    monkeypatch.setenv("AFTERWORDS_MODELS", str(models))


class TestQwen3(Qwen3Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models: Path) -> Iterator[Engine]:
        assert (models / "qwen3-1.7b").is_dir()
        engine = Qwen3Large()
        yield engine
        engine.close()

    @pytest.fixture
    def other(self) -> Engine:
        return Qwen3Small()

    def test_request_encodes_no_recording(self, engine: Engine, prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        def listens(*_: object) -> None:  # fails if a recording is encoded
            raise AssertionError("a recording was listened to")

        monkeypatch.setattr(CodecEncoder, "encode", listens)
        monkeypatch.setattr(SpeakerEncoder, "embed", listens)
        with pytest.raises(AssertionError, match="listened to"):
            engine.prepare(Reference(np.ones(16_000, np.float32), 16_000, "words"))
        assert len(self.speak(engine, self.task(engine, prompt, text=SHORT_TEXT)))

    def test_concurrent_loads_share_one_model(self, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []
        for part in (TorchModel, CodecEncoder):
            noted(part, made, monkeypatch)
        engine = Qwen3Large()
        prompts = run_concurrently([lambda: engine.prepare(reference)] * 4)
        engine.close()
        assert made == ["TorchModel", "CodecEncoder"]
        assert len({tensors(prompt) for prompt in prompts}) == 1


def noted(part: type, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Record each construction of a class, which is not visible from outside."""
    begin: Callable[..., None] = part.__init__  # type: ignore[misc]

    def init(*args: object, **named: object) -> None:
        made.append(part.__name__)
        begin(*args, **named)

    monkeypatch.setattr(part, "__init__", init)


def test_missing_weights_name_the_pull_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    state = Qwen3Small().availability()
    assert isinstance(state, Unavailable)
    assert "afterwords models pull qwen3-0.6b" in state.fix


def test_cpu_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_has_gpu", lambda: False)  # whatever machine this is
    state = Qwen3Large().availability()
    assert isinstance(state, Available)
    assert state.is_slow


@pytest.mark.parametrize("missing", ["torch", "safetensors", "tokenizers"])
def test_missing_package_names_the_pip_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> object:  # what is installed can't be taken away for a test
        return None if name == missing else name

    monkeypatch.setattr(engine_module, "find_spec", found)
    for engine in (Qwen3Large(), Qwen3Small()):
        state = engine.availability()
        assert isinstance(state, Unavailable)
        assert missing in state.reason
        assert state.fix == pip_install("cuda")
        with pytest.raises(MissingExtraError):
            engine.load(engine.backends[0])


def test_driver_without_cuda_torch_is_not_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = tmp_path / "torch"
    (torch / "lib").mkdir(parents=True)
    spec = SimpleNamespace(origin=str(torch / "__init__.py"))
    monkeypatch.setattr(engine_module, "which", lambda _: "/usr/bin/nvidia-smi")  # a machine with a GPU
    monkeypatch.setattr(engine_module, "find_spec", lambda _: spec)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not engine_module._has_gpu()
    (torch / "lib" / "libtorch_cuda.so").touch()
    assert engine_module._has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not engine_module._has_gpu()


def test_container_memory_limit_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("900000000\n")
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (limit,))
    with pytest.raises(
        ModelError, match=r"needs 1\.0 GB of memory; 0\.9 GB", check=has_code("too_little_memory")
    ) as caught:
        Qwen3Large().load("qwen3-1.7b")
    assert caught.value.hint == "use the backend lite, which needs 1 GB."


def test_too_little_memory_names_what_fits() -> None:
    sizes = {"qwen3-1.7b": 5_000, "qwen3-0.6b": 3_000}
    with pytest.raises(ModelError, check=has_code("too_little_memory")) as caught:
        check_memory("qwen3-1.7b", needed_bytes=5_000, room_bytes=4_000, sizes=sizes)
    assert caught.value.hint == "use qwen3-0.6b."
    check_memory("qwen3-1.7b", needed_bytes=5_000, room_bytes=5_000, sizes=sizes)


def test_cpu_has_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_has_gpu", lambda: False)
    assert Qwen3Large().max_concurrent == 4


def test_prompt_version_depends_on_weights_and_encoder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Qwen3Large().prompt_version
    assert here.startswith(f"{ENCODER_VERSION}-local-")
    assert Qwen3Small().prompt_version == here  # the same files
    tuned = tmp_path / "models" / "qwen3-1.7b"
    shutil.copytree(checkpoint, tuned)
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tuned.parent))
    assert Qwen3Large().prompt_version == here
    with (tuned / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert Qwen3Large().prompt_version != here


def test_prompt_of_other_weights_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000, "words")
    first = Qwen3Large()
    prompt = first.prepare(reference)
    first.close()
    tuned = tmp_path / "models" / "qwen3-1.7b"
    shutil.copytree(checkpoint, tuned)
    with (tuned / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tuned.parent))
    other = Qwen3Large()
    task = SpeechTask(text="Hello.", lang="en", backend="qwen3-1.7b", voice_id="me", prompt=prompt, seed=3)
    with pytest.raises(SynthesisError, match="its model is"):
        list(other.synthesize(task))
    other.close()


def test_weights_downloaded_later_are_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    engine = Qwen3Large()
    assert isinstance(engine.availability(), Unavailable)
    (tmp_path / "qwen3-1.7b").symlink_to(checkpoint)
    assert isinstance(engine.availability(), Available)
    assert "local" in engine.prompt_version
