"""The engines for Qwen3-TTS in torch, one for each size of the model.

On an NVIDIA GPU they decode many utterances at once, faster than real time; on a CPU they are slow. Listing engines
imports this module, so torch is imported in functions only.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Final

from afterwords.backends import qwen3
from afterwords.backends.base import Available, Progress, Unavailable, not_installed
from afterwords.backends.memory import memory_bytes
from afterwords.backends.qwen3.base import LoadedParts, Qwen3Engine, check_memory
from afterwords.config import load_config
from afterwords.errors import AfterwordsError, MissingExtraError
from afterwords.weights import catalog

NEEDS: Final = ("torch", "safetensors", "tokenizers", "cachetools")
"""Packages that the extra `cuda` installs."""
GPU_ROWS, CPU_ROWS = 64, 4
POSITIONS: Final = 2048
"""Columns of a prompt and frames of a segment: a reference of a minute has 760, the longest segment 1,290."""
WEIGHT_BYTES: Final = {"qwen3-1.7b": 4_100_000_000, "qwen3-0.6b": 2_100_000_000}
"""Sizes of the published weights without the encoders, in bfloat16."""
SPEAKING_BYTES: Final = 1_000_000_000
"""Memory for one utterance and its decode steps, in addition to the weights."""


class CudaEngine(Qwen3Engine):
    """One size of Qwen3-TTS in torch."""

    name = "cuda"

    def __init__(self) -> None:
        super().__init__()
        self.max_concurrent = GPU_ROWS if _has_gpu() else CPU_ROWS
        self.prompt_version = self._prompt_version()

    def availability(self) -> Available | Unavailable:
        if missing := _missing():
            if sys.platform == "darwin":
                return Unavailable("it is made for NVIDIA GPUs", "use the backend lite", is_foreign=True)
            return not_installed(missing, extra="cuda")
        try:
            catalog.locate(self.backends[0])
        except AfterwordsError as error:
            is_foreign = sys.platform == "darwin"  # no Mac has a GPU of NVIDIA's
            return Unavailable(error.message.rstrip("."), error.hint.rstrip("."), is_foreign=is_foreign)
        if self._loaded is None:  # the weights may have been downloaded since
            self.prompt_version = self._prompt_version()
        if _has_gpu():
            return Available("NVIDIA GPU, 24 kHz, ten languages")
        return Available("CPU, slowly: no NVIDIA GPU is here; 24 kHz, ten languages", is_slow=True)

    def _load(self, progress: Progress) -> LoadedParts:
        if _missing():
            raise MissingExtraError.for_extra("cuda", purpose="Speaking with Qwen3-TTS")
        import torch

        from afterwords.backends.qwen3.torch.agreement import check
        from afterwords.backends.qwen3.torch.model import TorchModel
        from afterwords.backends.qwen3.torch.scheduler import TorchScheduler, max_rows

        is_gpu = torch.cuda.is_available()
        folder = catalog.locate(self.backends[0])
        times = 1 if is_gpu else 2  # weights take two bytes in the checkpoint and on a GPU, four on a CPU
        check_memory(
            self.backends[0],
            needed_bytes=times * catalog.get_status(self.backends[0]).present_bytes + SPEAKING_BYTES,
            room_bytes=torch.cuda.mem_get_info()[0] if is_gpu else memory_bytes(),
            sizes={name: times * size + SPEAKING_BYTES for name, size in WEIGHT_BYTES.items()},
        )
        version = self._prompt_version()
        model = TorchModel(
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
            n_rows = max_rows(free_bytes, row_bytes=model.row_bytes(n_positions), most=GPU_ROWS)
        scheduler = TorchScheduler(model.talker, model.decoder, n_rows=n_rows, n_positions=n_positions)
        self.max_concurrent, self.prompt_version = n_rows, version
        return model, scheduler

    def _warm_up(self, parts: LoadedParts) -> None:
        model, scheduler = parts
        if model.device.type == "cuda":  # other devices compile and capture nothing
            from afterwords.backends.qwen3.torch.warmup import warm_up

            warm_up(model, scheduler)

    def _release(self) -> None:
        import torch

        torch.cuda.empty_cache()  # does nothing if no GPU was used

    def _prompt_version(self) -> str:
        """Return the version of the encoder with the revision of the weights, which prompts depend on."""
        return f"{qwen3.ENCODER_VERSION}-{catalog.find_revision(self.backends[0])}"


class Qwen3Large(CudaEngine):
    """The engine of the 1.7B model."""

    backends: tuple[str, ...] = ("qwen3-1.7b",)


class Qwen3Small(CudaEngine):
    """The engine of the 0.6B model."""

    backends: tuple[str, ...] = ("qwen3-0.6b",)


def _missing() -> list[str]:
    return [name for name in NEEDS if find_spec(name) is None]


def _has_gpu() -> bool:
    """Return whether there is an NVIDIA driver and a torch with CUDA, without importing torch, which takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    has_driver = Path("/proc/driver/nvidia/version").exists() or which("nvidia-smi") is not None
    torch = find_spec("torch")
    if not has_driver or torch is None or torch.origin is None:
        return False
    return any(Path(torch.origin).parent.glob("lib/*torch_cuda*"))
