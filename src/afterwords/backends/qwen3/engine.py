"""The plug-ins: Qwen3-TTS behind the Engine protocol, one engine for each size of the model.

On an NVIDIA GPU it speaks many utterances at once and faster than speech; on a CPU it is slow, and says so. Listing
engines imports this module, so torch and all that needs it stands inside the functions that speak.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Final

from afterwords import checkpoints
from afterwords.backends import qwen3
from afterwords.backends.base import Available, Chunk, Progress, Reference, Unavailable, ignore_progress
from afterwords.backends.qwen3.config import LANGUAGE_NAMES
from afterwords.config import load_config
from afterwords.errors import AfterwordsError, MissingExtraError, SynthesisError

if TYPE_CHECKING:
    from afterwords.backends.qwen3.loop import Loop
    from afterwords.backends.qwen3.model import Model
    from afterwords.models import SpeechTask

NEEDS: Final = ("torch", "safetensors", "tokenizers")
"""What the extra `cuda` installs."""
GPU_ROWS, CPU_ROWS = 64, 4
POSITIONS: Final = 2048
"""Columns of a prompt and frames of a piece: a reference of a minute has 760, a piece that fills up its limit 1,290."""


class Qwen3Engine:
    """One checkpoint of Qwen3-TTS, loaded when it is first needed."""

    name = "cuda"
    backends: tuple[str, ...]
    sample_rate = 24_000

    def __init__(self) -> None:
        self.max_concurrent = GPU_ROWS if _has_gpu() else CPU_ROWS
        self.prompt_version = self._prompt_version()
        self._lock = threading.Lock()
        self._loaded: tuple[Model, Loop] | None = None
        self._is_warm = False

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - all sizes speak the same
        return frozenset(LANGUAGE_NAMES)

    def availability(self) -> Available | Unavailable:
        if missing := _missing():
            fix = 'pip install "afterwords[cuda]"'
            return Unavailable(f"{', '.join(missing)} is not installed", fix, is_foreign=sys.platform == "darwin")
        try:
            checkpoints.locate(self.backends[0])
        except AfterwordsError as error:
            is_foreign = sys.platform == "darwin"  # no Mac has a GPU of NVIDIA's
            return Unavailable(error.message.rstrip("."), error.hint.rstrip("."), is_foreign=is_foreign)
        if self._loaded is None:  # they may have been pulled since
            self.prompt_version = self._prompt_version()
        if _has_gpu():
            return Available("NVIDIA GPU, 24 kHz, ten languages")
        return Available("CPU, slowly: no NVIDIA GPU is here; 24 kHz, ten languages", is_slow=True)

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:  # noqa: ARG002 - one backend
        progress(0.0, "loading the model")
        model, loop = self._parts(lambda done, step: progress(0.8 * done, step))
        if model.device.type == "cuda" and not self._is_warm:  # elsewhere, there is nothing to compile or to capture
            from afterwords.backends.qwen3.warmup import warm_up

            progress(0.8, "warming up")
            warm_up(model, loop)
            self._is_warm = True
        progress(1.0, "done")

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:  # noqa: ARG002 - it takes a second
        progress(0.0, "loading the model")
        model, _ = self._parts(lambda done, step: progress(0.8 * done, step))
        progress(0.8, "listening")
        prompt = model.hear(reference).to_bytes(model.form)
        progress(1.0, "done")
        return prompt

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        try:  # the header of safetensors: JSON behind its length in 8 bytes. torch may be gone since it was made
            is_in_context = "codes" in json.loads(prompt[8 : 8 + int.from_bytes(prompt[:8], "little")])
        except (ValueError, TypeError):
            return {}
        if is_in_context:
            return {"speaks": "as a continuation of the recording"}
        return {
            "speaks": "by its speaker embedding alone",
            "notice": "What is said in the recording is not known, so the voice speaks by its speaker embedding alone, "
            "which is less alike: state the words, or install the extra transcribe, and clone it again.",
        }

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        model, loop = self._parts()
        from afterwords.backends.qwen3.reading import Reading
        from afterwords.backends.qwen3.reference_prompt import StalePromptError

        try:
            voice = model.voice(task.prompt)
        except StalePromptError as error:
            raise SynthesisError(task.backend, why=str(error)) from error
        yield from Reading(model, loop, voice, task).chunks()

    def close(self) -> None:
        with self._lock:
            parts, self._loaded, self._is_warm = self._loaded, None, False
        if parts is None:
            return
        parts[1].close()
        del parts
        import torch

        torch.cuda.empty_cache()  # which does nothing where no GPU was used

    def _parts(self, progress: Progress = ignore_progress) -> tuple[Model, Loop]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load(progress)
            return self._loaded

    def _load(self, progress: Progress) -> tuple[Model, Loop]:
        if _missing():
            raise MissingExtraError("cuda", purpose="Speaking with Qwen3-TTS")
        import torch

        from afterwords.backends.qwen3.agreement import check
        from afterwords.backends.qwen3.loop import Loop, rows_that_fit
        from afterwords.backends.qwen3.model import Model

        is_gpu = torch.cuda.is_available()
        folder = checkpoints.locate(self.backends[0])
        version = self._prompt_version()
        model = Model(
            folder,
            name=f"{self.backends[0]} {version}",
            device=torch.device("cuda" if is_gpu else "cpu"),
            dtype=torch.bfloat16 if is_gpu else torch.float32,
            progress=progress,
        )
        if (precision := load_config().precision) != "bf16":
            progress(0.95, f"rounding it to {precision}")
            check(model.quantize(precision), model=self.backends[0], precision=precision)
        n_rows, n_positions = CPU_ROWS, min(POSITIONS, model.config.talker.max_positions)
        if is_gpu:
            free_bytes, _ = torch.cuda.mem_get_info()
            n_rows = rows_that_fit(free_bytes, row_bytes=model.row_bytes(n_positions), most=GPU_ROWS)
        loop = Loop(model.talker, model.decoder, n_rows=n_rows, n_positions=n_positions)
        self.max_concurrent, self.prompt_version = n_rows, version
        return model, loop

    def _prompt_version(self) -> str:
        """Of the encoder, and of the weights: another revision hears otherwise."""
        return f"{qwen3.ENCODER_VERSION}-{checkpoints.revision(self.backends[0])}"


class Qwen3Large(Qwen3Engine):
    """1.7 billion parameters."""

    backends: tuple[str, ...] = ("qwen3-1.7b",)


class Qwen3Small(Qwen3Engine):
    """0.6 billion parameters."""

    backends: tuple[str, ...] = ("qwen3-0.6b",)


def _missing() -> list[str]:
    return [name for name in NEEDS if find_spec(name) is None]


def _has_gpu() -> bool:
    """Whether there is an NVIDIA driver and a torch that uses it, without loading torch, which takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    has_driver = Path("/proc/driver/nvidia/version").exists() or which("nvidia-smi") is not None
    return has_driver and _torch_knows_gpus()


def _torch_knows_gpus() -> bool:
    torch = find_spec("torch")
    return torch is not None and torch.origin is not None and any(Path(torch.origin).parent.glob("lib/*torch_cuda*"))
