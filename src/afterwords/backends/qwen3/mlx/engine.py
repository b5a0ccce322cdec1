"""The engines for Qwen3-TTS on MLX, one for each size of the model.

On Apple Silicon they use the GPU; on Linux, with `mlx[cpu]`, they are slow. The checkpoint is chosen by memory or by a
setting. Listing engines imports this module, so MLX is imported in functions only.
"""

from __future__ import annotations

import gc
import platform
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from afterwords.backends import qwen3
from afterwords.backends.base import Available, Chunk, Progress, Reference, Unavailable, ignore_progress, not_installed
from afterwords.backends.memory import memory_bytes
from afterwords.backends.qwen3.base import LoadedParts, Qwen3Engine, check_memory, run_to_end
from afterwords.config import load_config
from afterwords.errors import AfterwordsError, MissingExtraError, ModelError
from afterwords.weights import catalog

if TYPE_CHECKING:
    from afterwords.models import SpeechTask

NEEDS: Final = ("mlx", "mlx_audio", "safetensors", "tokenizers", "cachetools")
"""Packages that the extra `mlx` installs."""
ROWS: Final = 4
POSITIONS: Final = 2048
"""Columns of a prompt and frames of a segment: a reference of a minute has 760, the longest segment 1,290."""
NEEDED_BYTES: Final = {
    "qwen3-1.7b": {"bf16": 5_600_000_000, "8bit": 4_100_000_000, "4bit": 3_300_000_000},
    "qwen3-0.6b": {"bf16": 3_500_000_000, "8bit": 3_000_000_000, "4bit": 2_700_000_000},
}
"""Memory of the published checkpoints, most accurate first, computed from their parameters: quantized weights have 8.5
or 4.5 bits with their scales, embeddings and speaker encoder 16, the codec 32; and one gigabyte for decoding."""
SPEAKING_BYTES: Final = 1_000_000_000
CHOSEN_SHARE, MOST_SHARE = 0.5, 0.75
"""Shares of the memory, which a Mac's GPU shares with all else, up to which weights are chosen and may be set."""


class IdleTimer:
    """Calls `close`, which releases the memory, after a time in seconds without use; with 0, never."""

    def __init__(self, close: Callable[[], None], *, after_s: float) -> None:
        self._close, self._after_s = close, after_s
        self._lock = threading.RLock()  # reentrant: a garbage-collected generator may exit in any thread
        self._n_busy = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark as in use inside the block. Waits for a running close."""
        with self._lock:
            self._n_busy += 1
            if self._timer is not None:
                self._timer.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._n_busy -= 1
                if not self._n_busy and self._after_s:
                    self._timer = threading.Timer(self._after_s, self._close_if_idle)
                    self._timer.daemon = True
                    self._timer.start()

    def _close_if_idle(self) -> None:
        with self._lock:
            if not self._n_busy:
                self._close()


class MlxEngine(Qwen3Engine):
    """One size of Qwen3-TTS on MLX, unloaded when it is idle."""

    name = "mlx"

    def __init__(self) -> None:
        super().__init__()
        self._last_checkpoint: str | None = None  # that was loaded
        self.max_concurrent, self.prompt_version = ROWS, self._prompt_version()
        self._idle = IdleTimer(self._close_unless_changed, after_s=load_config().idle_unload_s)

    def availability(self) -> Available | Unavailable:
        if not (_is_apple_silicon() or find_spec("mlx")):
            return Unavailable("MLX is made for Macs with Apple Silicon", "use another engine", is_foreign=True)
        if missing := _missing():
            return not_installed(missing, extra="mlx")
        try:
            checkpoint = self._checkpoint()
        except AfterwordsError as error:
            return Unavailable(error.message.rstrip("."), error.hint.rstrip("."))
        if self._loaded is None:  # the weights may have been downloaded since
            self.prompt_version = _version_of(checkpoint)
        if _is_apple_silicon():
            return Available(f"Apple Silicon, weights {checkpoint}, 24 kHz, ten languages")
        return Available(f"MLX on the CPU, slowly; weights {checkpoint}, 24 kHz, ten languages", is_slow=True)

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:
        with self._idle.busy():
            super().load(backend, progress)

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:
        with self._idle.busy():
            return super().prepare(reference, progress, fast=fast)

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        with self._idle.busy():
            yield from super().synthesize(task)

    def _load(self, progress: Progress) -> LoadedParts:
        if _missing():
            raise MissingExtraError.for_extra("mlx", purpose="Speaking with Qwen3-TTS on Apple Silicon")
        checkpoint = self._checkpoint()
        folder = catalog.locate(checkpoint)
        check_memory(
            checkpoint,
            needed_bytes=catalog.get_status(checkpoint).present_bytes + SPEAKING_BYTES,
            room_bytes=MOST_SHARE * memory_bytes(),
            sizes={f"{name}-{weights}": size for name, of in NEEDED_BYTES.items() for weights, size in of.items()},
        )
        from afterwords.backends.qwen3.mlx.model import MlxModel
        from afterwords.backends.qwen3.mlx.scheduler import MlxScheduler
        from afterwords.backends.qwen3.mlx.thread import device_thread

        version = _version_of(checkpoint)
        model = MlxModel(folder, name=f"{checkpoint} {version}", device_thread=device_thread(), progress=progress)
        n_positions = min(POSITIONS, model.config.talker.max_positions)
        self.prompt_version, self._last_checkpoint = version, checkpoint
        return model, MlxScheduler(model, device_thread(), n_rows=ROWS, n_positions=n_positions)

    def _warm_up(self, parts: LoadedParts) -> None:
        import numpy as np

        from afterwords.backends.qwen3.reference_prompt import ReferencePrompt

        model, scheduler = parts
        voice = ReferencePrompt(np.zeros(model.config.speaker.width, np.float32), None, (), recording="")
        run_to_end(scheduler, model.make_request(voice, "One.", "en", max_frames=3, seed=0))

    def _release(self) -> None:
        import mlx.core as mx

        from afterwords.backends.qwen3.mlx.thread import DeviceThreadGoneError, device_thread

        gc.collect()  # compiled functions are in reference cycles that hold the weights
        with suppress(DeviceThreadGoneError):
            device_thread().run(mx.clear_cache)

    def _checkpoint(self) -> str:
        """Return the name of the checkpoint to load: the one that is set, or the best one here that fits.

        Raises:
            ModelError: No usable checkpoint is here, or a file of it is missing or truncated.
        """
        (backend,) = self.backends
        needed, room = NEEDED_BYTES[backend], CHOSEN_SHARE * memory_bytes()
        if self._last_checkpoint and catalog.get_status(self._last_checkpoint).state is catalog.ModelState.WHOLE:
            return self._last_checkpoint  # for which prompts were issued
        by_choice = sorted(needed, key=lambda weights: max(0, needed[weights] - room))  # those that fit, then smaller
        if (wanted := load_config().mlx_weights) is not None:
            by_choice = [wanted]
        # The checkpoints that were published for torch are bf16.
        names = [
            name
            for weights in by_choice
            for name in (f"{backend}-{weights}", *([backend] if weights == "bf16" else []))
        ]
        found = [catalog.get_status(name) for name in names]
        if whole := next((status for status in found if status.state is catalog.ModelState.WHOLE), None):
            return whole.checkpoint.name
        if problem := next((status.problem for status in found if status.problem is not None), None):
            raise problem
        raise ModelError.not_downloaded(names[0])

    def _close_unless_changed(self) -> None:
        """Unload, unless the weights on disk changed: issued prompts fit only the loaded ones."""
        if self._prompt_version() == self.prompt_version:
            self.close()

    def _prompt_version(self) -> str:
        try:
            return _version_of(self._checkpoint())
        except AfterwordsError:
            return f"{qwen3.ENCODER_VERSION}-none"


class MlxLarge(MlxEngine):
    """The engine of the 1.7B model."""

    backends: tuple[str, ...] = ("qwen3-1.7b",)


class MlxSmall(MlxEngine):
    """The engine of the 0.6B model."""

    backends: tuple[str, ...] = ("qwen3-0.6b",)


def _version_of(checkpoint: str) -> str:
    return f"{qwen3.ENCODER_VERSION}-{catalog.find_revision(checkpoint)}"


def _missing() -> list[str]:
    return [name for name in NEEDS if find_spec(name) is None]


def _is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"
