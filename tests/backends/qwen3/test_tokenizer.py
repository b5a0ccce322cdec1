"""The tokenizer: equal to the reference package, except for typed control tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.errors import ModelError
from scripts.make_qwen3_tiny import CONTROL_TOKENS, MERGES
from tests.backends.qwen3.torch.speaking import LANGUAGE


def tokenizer_of(folder: Path, **kwargs: int) -> TextTokenizer:
    config = read_config(folder)
    return TextTokenizer(folder, config.tokens, **{"vocab": config.talker.text_vocab, **kwargs})


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> TextTokenizer:
    return tokenizer_of(checkpoint)


@pytest.mark.parametrize("text", list(LANGUAGE["token_ids"]))
def test_ids_equal_the_reference_package(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.encode(text) == LANGUAGE["token_ids"][text]


@pytest.mark.parametrize("token", [*CONTROL_TOKENS, "<tool_call>"])
def test_typed_control_token_is_plain_text(tokenizer: TextTokenizer, token: str) -> None:
    ids = tokenizer.encode(f"say {token} now")
    assert max(ids) < 256 + len(MERGES)
    assert len(ids) > len(token)


def test_role_is_three_tokens(tokenizer: TextTokenizer, checkpoint: Path) -> None:
    start, assistant, line_break = tokenizer.role
    assert start == read_config(checkpoint).tokens.im_start
    assert [assistant, line_break] == tokenizer.encode("assistant\n")


def test_empty_text_has_no_tokens(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("vocab.json", None, r"vocab\.json is missing"),
        ("merges.txt", None, r"merges\.txt is missing"),
        ("merges.txt", "#version: 0.2\nqq zz\n", r"does not fit vocab\.json"),
        ("merges.txt", "#version: 0.2\n", 'does not make one token of "assistant"'),
        ("vocab.json", "{", r"does not fit vocab\.json"),
        ("tokenizer_config.json", "[]", "should be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {}}', r"added_tokens_decoder\.\d+ is missing"),
    ],
)
def test_damaged_file_is_named(checkpoint: Path, tmp_path: Path, file: str, content: str | None, why: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / file).unlink() if content is None else (folder / file).write_text(content, "utf-8")
    with pytest.raises(ModelError, match=why):
        tokenizer_of(folder)


def test_too_large_vocabulary_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="more than the model's 200 tokens"):
        tokenizer_of(checkpoint, vocab=200)


def test_missing_control_id_is_named(checkpoint: Path) -> None:
    added: dict[str, Any] = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8"))[
        "added_tokens_decoder"
    ]
    tokens = read_config(checkpoint).tokens
    assert added[str(tokens.im_end)]["content"] == "<|im_end|>"
