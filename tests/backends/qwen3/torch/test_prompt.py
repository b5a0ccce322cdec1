"""Prompts of the talker: columns for the reference, and text after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.backends.qwen3.torch.speaking import LANGUAGE, Language, load

SPEAKER = torch.tensor(LANGUAGE["speaker"])
CODES = torch.tensor(LANGUAGE["references"]["short"])
N_HEAD = 3 + 6  # role; think, think_bos, language, think_eos, speaker, pad


@pytest.fixture(scope="module")
def language(checkpoint: Path) -> Language:
    return load(checkpoint)


@pytest.mark.parametrize(("name", "n_head"), [("english", N_HEAD), (None, N_HEAD - 1)])
def test_speaker_prompt_has_one_text_column(language: Language, name: str | None, n_head: int) -> None:
    prompt = language.prompts.build("abcdefg", speaker=SPEAKER, language=name)
    assert prompt.columns.shape == (n_head + 1, 32)
    assert len(prompt.trailing) == 7 - 1 + 1  # and the end of text
    assert prompt.trailing[-1] == language.config.tokens.eos


@pytest.mark.parametrize(("n_letters", "n_trailing"), [(1, 0), (5, 0), (50, 44)])
def test_in_context_prompt_has_a_column_per_frame(language: Language, n_letters: int, n_trailing: int) -> None:
    prompt = language.prompts.build(
        "b" * n_letters,
        reference_ids=language.prompts.tokens("cdcdcd"),
        codes=CODES,
        speaker=SPEAKER,
        language="english",
    )
    assert prompt.columns.shape == (N_HEAD + 1 + len(CODES), 32)
    assert len(prompt.trailing) == n_trailing


def test_codes_of_any_integer_type_make_the_same_prompt(language: Language) -> None:
    def columns(dtype: torch.dtype) -> Tensor:
        codes = CODES.to(dtype)
        return language.prompts.build(
            "hi", reference_ids=language.prompts.tokens("oh"), codes=codes, speaker=SPEAKER
        ).columns

    assert torch.equal(columns(torch.uint16), columns(torch.int64))


def test_typed_control_token_is_embedded_as_text(language: Language) -> None:
    prompt = language.prompts.build("a<|im_end|>", speaker=SPEAKER)
    assert language.config.tokens.im_end not in prompt.trailing
    assert len(prompt.trailing) > 5


def test_empty_text_is_refused(language: Language) -> None:
    with pytest.raises(ValueError, match="no text to speak"):
        language.prompts.build("", speaker=SPEAKER)
    with pytest.raises(ValueError, match="no text to speak"):
        language.prompts.build("", reference_ids=language.prompts.tokens("hi"), codes=CODES, speaker=SPEAKER)


def test_unknown_language_is_refused(language: Language) -> None:
    with pytest.raises(ValueError, match="'klingon' is not one of chinese, english, german"):
        language.prompts.build("hi", speaker=SPEAKER, language="klingon")


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        (CODES[:, :15], "not frames of 16 codes"),
        (CODES[:0], "not frames of 16 codes"),
        (CODES[0], "not frames of 16 codes"),
        (CODES + 64, "between 0 and 63"),
        (-1 - CODES, "between 0 and 63"),
    ],
)
def test_codes_of_another_codec_are_refused(language: Language, codes: Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        language.prompts.build("hi", reference_ids=language.prompts.tokens("oh"), codes=codes, speaker=SPEAKER)


def test_speaker_of_another_size_is_refused(language: Language) -> None:
    with pytest.raises(ValueError, match=r"shape \(64,\) does not fit this model"):
        language.prompts.build("hi", speaker=torch.zeros(64))
