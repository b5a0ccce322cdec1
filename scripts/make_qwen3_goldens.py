"""Write the codes of the reference package for the tiny checkpoint, which the tests compare with.

The reference is `qwen-tts` 0.1.1, which pins an old transformers and depends on a web interface. It needs its own
environment, and the tests do not depend on it.

    python3.11 -m venv /tmp/oracle
    /tmp/oracle/bin/pip install torch==2.13.0 transformers==4.57.3 accelerate librosa soundfile
    /tmp/oracle/bin/pip install --no-deps qwen-tts==0.1.1
    /tmp/oracle/bin/python -m scripts.make_qwen3_goldens

It writes tests/backends/qwen3/goldens/language.json: greedy codes, and token ids of awkward texts.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scripts.make_qwen3_tiny import HIDDEN, N_CODE_GROUPS, N_CODES, make_checkpoint

GOLDENS = Path(__file__).parents[1] / "tests/backends/qwen3/goldens"
N_TOKENS: Final = 26
SHORT = "hello world"
LONG = "A rather longer text, which outlasts the codes of its reference: so text trails on, 12 tokens and 你好."
REFERENCE_TEXT = "hello there"
N_REFERENCE_FRAMES: Final = {"short": 12, "long": 150}  # 150 frames last 12 s
TEXTS: Final = (
    "hello world",
    "  two spaces before, and after  ",
    "12345 and 1,234.50 €",
    "it's we'll THEY'RE don't",
    "你好，世界。再见！",
    "こんにちは 안녕하세요 Привет",
    "emoji 😀👩‍👩‍👧 end",
    "tabs\tand\nline\n\nbreaks\r\n!",
    "e\u0301 is not é until it is composed",
    "spaces      inside",
    "!!! ??? ...\n\n",
    "a",
    "<|im_star|> <tts_pa> half a token",
    "zero\u200bwidth\u00a0space",
)


@dataclass(frozen=True)
class Row:
    """One utterance: text, language (None lets the model choose), and length of the reference."""

    text: str
    language: str | None
    reference: str | None  # None: the speaker embedding alone


CASES: Final[dict[str, list[Row]]] = {
    "in context": [Row(SHORT, "english", "short")],
    "in context, language unknown": [Row(SHORT, None, "short")],
    "in context, text outlasts the reference": [Row(LONG, "german", "short")],
    "in context, reference of 12 s": [Row(SHORT, "english", "long")],
    "speaker alone": [Row(SHORT, "english", None)],
    "speaker alone, language unknown": [Row(LONG, None, None)],
    "rows of different length": [
        Row(SHORT, "english", "short"),
        Row(LONG, None, "short"),
        Row(SHORT, "chinese", "long"),
        Row(LONG, "english", None),
        Row("a", None, None),
    ],
}


def main() -> None:
    stub_unused_tokenizer()
    goldens: dict[str, Any] = {"reference_text": REFERENCE_TEXT, "speaker": _speaker(), "references": _references()}
    for name, predictor_hidden in (("projected", 16), ("unprojected", HIDDEN)):
        with tempfile.TemporaryDirectory() as folder:
            model = load_reference(make_checkpoint(Path(folder), predictor_hidden=predictor_hidden))
            goldens[name] = {case: _spoken(model, rows, goldens) for case, rows in CASES.items()}
            goldens["token_ids"] = {text: _text_ids(model, text) for text in TEXTS}
    GOLDENS.mkdir(parents=True, exist_ok=True)
    (GOLDENS / "language.json").write_text(_laid_out(goldens) + "\n", "utf-8", newline="\n")


def _spoken(model: Any, rows: list[Row], goldens: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a batch with their greedy codes, shape (n_frames, 16), up to the end of speech."""
    import torch

    references = [None if row.reference is None else goldens["references"][row.reference] for row in rows]
    codes, _ = model.model.generate(
        input_ids=model._tokenize_texts([model._build_assistant_text(row.text) for row in rows]),
        ref_ids=model._tokenize_texts([model._build_ref_text(REFERENCE_TEXT)]) * len(rows),
        voice_clone_prompt={
            "ref_code": [None if frames is None else torch.tensor(frames) for frames in references],
            "ref_spk_embedding": [torch.tensor(goldens["speaker"])] * len(rows),
            "x_vector_only_mode": [frames is None for frames in references],
            "icl_mode": [frames is not None for frames in references],
        },
        languages=[row.language or "auto" for row in rows],
        max_new_tokens=N_TOKENS,
        do_sample=False,
        subtalker_dosample=False,
    )
    return [{**asdict(row), "codes": frames.tolist()} for row, frames in zip(rows, codes, strict=True)]


def _text_ids(model: Any, text: str) -> list[int]:
    """Return the ids of the text in the reference package: those between the role and the end of the turn."""
    ids: list[int] = model._tokenize_texts([model._build_assistant_text(text)])[0][0].tolist()
    return ids[3:-5]


def _references() -> dict[str, list[list[int]]]:
    dice = np.random.Generator(np.random.PCG64(7))
    return {
        name: dice.integers(0, N_CODES, (n_frames, N_CODE_GROUPS)).tolist()
        for name, n_frames in N_REFERENCE_FRAMES.items()
    }


def _speaker() -> list[float]:
    numbers: list[float] = np.random.Generator(np.random.PCG64(8)).standard_normal(HIDDEN).round(3).tolist()
    return numbers


def load_reference(folder: Path) -> Any:
    import torch
    from qwen_tts import Qwen3TTSModel

    return Qwen3TTSModel.from_pretrained(str(folder), device_map="cpu", dtype=torch.float32)


def stub_unused_tokenizer() -> None:
    """Stand in for the 25 Hz tokenizer: no 12 Hz model uses it, and it alone imports torchaudio and sox."""
    from transformers import PretrainedConfig, PreTrainedModel

    package = "qwen_tts.core.tokenizer_25hz"
    root = types.ModuleType(package)
    root.__path__ = []
    config = types.ModuleType(f"{package}.configuration_qwen3_tts_tokenizer_v1")
    model = types.ModuleType(f"{package}.modeling_qwen3_tts_tokenizer_v1")
    kind = {"model_type": "qwen3_tts_tokenizer_25hz"}
    config.Qwen3TTSTokenizerV1Config = type("Qwen3TTSTokenizerV1Config", (PretrainedConfig,), kind)  # type: ignore[attr-defined]
    stub = {"config_class": config.Qwen3TTSTokenizerV1Config}
    model.Qwen3TTSTokenizerV1Model = type("Qwen3TTSTokenizerV1Model", (PreTrainedModel,), stub)  # type: ignore[attr-defined]
    for name in ("Qwen3TTSTokenizerV1EncoderOutput", "Qwen3TTSTokenizerV1DecoderOutput"):
        setattr(model, name, type(name, (), {}))
    for module in (root, config, model):
        sys.modules[module.__name__] = module


def _laid_out(value: Any, depth: int = 0) -> str:
    """Return JSON with one line per entry of an object, and lists of numbers on one line."""
    if isinstance(value, dict):
        inner = ",\n".join(
            " " * (depth + 1) + json.dumps(key, ensure_ascii=True) + ": " + _laid_out(entry, depth + 1)
            for key, entry in value.items()
        )
        return "{\n" + inner + "\n" + " " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        inner = ",\n".join(" " * (depth + 1) + _laid_out(entry, depth + 1) for entry in value)
        return "[\n" + inner + "\n" + " " * depth + "]"
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
