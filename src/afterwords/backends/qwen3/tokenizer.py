"""The byte-level BPE tokenizer of a checkpoint.

Text never becomes a control token: `<|im_end|>` in a text is tokenized as its characters, where the reference package
would end the text there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from afterwords.backends.qwen3.config import HINT, CheckpointSection, ControlTokens, read_section
from afterwords.errors import ModelError

# Splits text before merges: contractions, letters with a preceding character, single digits, punctuation, line breaks,
# spaces. Source: transformers 4.57.3, `Qwen2Converter`.
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _TokenizerFile(CheckpointSection):
    """tokenizer_config.json."""

    added_tokens_decoder: dict[str, dict[str, Any]]


class TextTokenizer:
    """The tokenizer of a checkpoint.

    Attributes:
        role: Ids at the start of a prompt: `<|im_start|>assistant` and a line break.
    """

    def __init__(self, folder: Path, tokens: ControlTokens, *, vocab: int) -> None:
        """Read vocab.json, merges.txt and tokenizer_config.json.

        Raises:
            ModelError: A file is missing or damaged, or the files do not match.
        """
        vocab_path, merges = folder / "vocab.json", folder / "merges.txt"
        for path in (vocab_path, merges):
            if not path.is_file():
                raise ModelError.for_file(str(path), why="is missing", hint=HINT)
        try:
            bpe = Tokenizer(models.BPE.from_file(str(vocab_path), str(merges)))
        except Exception as error:
            raise ModelError.for_file(str(merges), why=f"does not fit vocab.json ({error})", hint=HINT) from error
        bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._bpe = bpe
        if bpe.get_vocab_size() > vocab:
            raise ModelError.for_file(str(vocab_path), why=f"has more than the model's {vocab} tokens", hint=HINT)
        path = folder / "tokenizer_config.json"
        added = read_section(path, _TokenizerFile).added_tokens_decoder
        for number in (tokens.im_start, tokens.im_end, tokens.pad, tokens.bos, tokens.eos):
            if str(number) not in added:
                why = f"can't be used: added_tokens_decoder.{number} is missing"
                raise ModelError.for_file(str(path), why=why, hint=HINT)
        self.role = (tokens.im_start, *self.encode("assistant\n"))
        if len(self.role) != 3:
            raise ModelError.for_file(str(merges), why='does not make one token of "assistant"', hint=HINT)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, none of them a control id."""
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids
