"""A loaded talker, and the codes that the reference package decodes with the same tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from afterwords.backends.qwen3.config import ModelConfig, Sampling, read_config
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.prompt import Prompt, Prompts
from afterwords.backends.qwen3.torch.talker import PrefillRow, Talker
from afterwords.backends.qwen3.torch.weights import Weights
from tests.backends.qwen3.conftest import GOLDENS

LANGUAGE: Final[dict[str, Any]] = json.loads((GOLDENS / "language.json").read_text("utf-8"))
N_POSITIONS: Final = 256
GREEDY: Final = Sampling(temperature=0.0, predictor_temperature=0.0)
Codes = list[list[int]]


@dataclass(frozen=True)
class Language:
    """The talker of a checkpoint and its prompt builder."""

    config: ModelConfig
    talker: Talker
    prompts: Prompts

    def prompt(self, row: dict[str, Any]) -> Prompt:
        """Build the prompt of a row of the goldens."""
        speaker, language = torch.tensor(LANGUAGE["speaker"]), row["language"]
        if row["reference"] is None:
            return self.prompts.build(row["text"], speaker=speaker, language=language)
        return self.prompts.build(
            row["text"],
            reference_ids=self.prompts.tokens(LANGUAGE["reference_text"]),
            codes=torch.tensor(LANGUAGE["references"][row["reference"]]),
            speaker=speaker,
            language=language,
        )

    def speak(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling], *, n_frames: int = 25) -> list[Codes]:
        """Decode a batch, each row to its end or a number of frames."""
        rows = self.talker.new_rows(len(prompts), N_POSITIONS)
        utterances = [
            PrefillRow(row, prompt, n_frames, sampling)
            for row, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        ]
        self.talker.prefill(rows, utterances)
        for _ in range(n_frames):
            self.talker.decode_frame(rows)
        return spoken(rows)


def load(folder: Path, *, dtype: torch.dtype = torch.float32) -> Language:
    config = read_config(folder)
    with Weights.open(folder, device="cpu", dtype=dtype) as weights:
        talker = Talker(weights, config, max_positions=N_POSITIONS)
    tokenizer = TextTokenizer(folder, config.tokens, vocab=config.talker.text_vocab)
    return Language(config, talker, Prompts(config, talker.embeddings, tokenizer))


def spoken(rows: BatchState) -> list[Codes]:
    """Return the frames of each row so far."""
    return [rows.history[row, :n_frames].tolist() for row, (n_frames, _, _) in enumerate(rows.read_progress())]


def seeded(seed: int) -> Sampling:
    """Return the published sampling parameters with a seed."""
    return replace(Sampling(), seed=seed)
