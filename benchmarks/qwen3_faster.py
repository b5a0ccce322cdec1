"""faster-qwen3-tts with random weights: the reference package's modules, each step of one row as a CUDA graph.

It is not a dependency of this project: `pip install faster-qwen3-tts` adds it. Its own loop is run and times itself,
without codec; its loader, which downloads a checkpoint, is not.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.qwen3_model import REFERENCE_FRAMES
from scripts.make_qwen3_goldens import stub_unused_tokenizer

NEEDS: Final = ("faster_qwen3_tts", "qwen_tts", "transformers")
MAX_POSITIONS: Final = 512


class FailedError(Exception):
    """faster-qwen3-tts is installed but does not run with random weights."""


def missing(device: torch.device) -> str | None:
    """Return why it can't run."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    absent = [name for name in NEEDS if find_spec(name) is None]
    return f"{' and '.join(absent)} missing: pip install faster-qwen3-tts" if absent else None


def step_ms(folder: Path, device: torch.device, dtype: torch.dtype, n_frames: int) -> float:
    """Return the time of a frame of one row.

    Raises:
        FailedError: another version than the 0.5.4 that this was written for, or something it needs is missing.
    """
    try:
        with redirect_stdout(io.StringIO()):  # it prints its progress
            talker = random_talker(folder, device, dtype)
            predictor_graph, talker_graph = graphs(talker, device, dtype)
            predictor_graph.capture()
            talker_graph.capture(prefill_len=REFERENCE_FRAMES)
            speak(talker, predictor_graph, talker_graph, n_frames)  # once to warm up
            return float(speak(talker, predictor_graph, talker_graph, n_frames)["ms_per_step"])
    except Exception as error:
        raise FailedError(f"it raised {type(error).__name__}: {error}") from error


def random_talker(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return its talker with code predictor, for the sizes of a configuration."""
    if find_spec("torchaudio") is None or find_spec("sox") is None:
        stub_unused_tokenizer()
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSTalkerForConditionalGeneration

    config = Qwen3TTSConfig.from_pretrained(folder).talker_config
    with torch.device(device):
        talker = Qwen3TTSTalkerForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return talker.to(dtype).eval()


def graphs(talker: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return its two graphs, as its loader makes them."""
    from faster_qwen3_tts.predictor_graph import PredictorGraph
    from faster_qwen3_tts.talker_graph import TalkerGraph

    config, predictor = talker.config, talker.code_predictor
    return (
        PredictorGraph(predictor, predictor.model.config, config.hidden_size, device=str(device), dtype=dtype),
        TalkerGraph(talker.model, config, device=str(device), dtype=dtype, max_seq_len=MAX_POSITIONS),
    )


def speak(talker: Any, predictor_graph: Any, talker_graph: Any, n_frames: int) -> dict[str, float]:
    """Decode after a prompt as long as ours; return its own figures."""
    from faster_qwen3_tts.generate import fast_generate

    weight = talker.codec_head.weight
    columns = torch.randn(1, REFERENCE_FRAMES + 10, weight.shape[1], device=weight.device, dtype=weight.dtype)
    codes, figures = fast_generate(
        talker,
        columns,
        torch.ones(columns.shape[:2], device=weight.device, dtype=torch.int64),
        columns[:, :1],
        columns[:, :1],
        talker.config,
        predictor_graph,
        talker_graph,
        max_new_tokens=n_frames,
        min_new_tokens=n_frames,
    )
    if codes is None or len(codes) != n_frames:
        raise RuntimeError("it ended before its time")
    return dict(figures)
