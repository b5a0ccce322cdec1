"""The layout of a prompt: columns of text and codes, and the text that follows with each frame.

A column is the sum of a text track and a code track:

    text  | role (3) | pad ... pad            bos | the text, or the reference's text and the text
    codes |          | think, language, speaker, pad | bos, and in context the frames of the reference

In context, the model continues a reference with its transcript; with a speaker embedding alone, it starts in silence.
The layout is plain numbers, so that torch and MLX build the same prompt.
Source: qwen-tts 0.1.1, `Qwen3TTSForConditionalGeneration.generate` in its streaming mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from afterwords.backends.qwen3.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """The ids of one prompt.

    Attributes:
        text: Token of each column.
        steering: Control codes of the columns between the role and the speaker embedding.
        closing: Control codes after the speaker embedding; the frames of a reference follow, up to the last column.
        trailing: Tokens after the columns, one per frame.
    """

    text: tuple[int, ...] = field(repr=False)
    steering: tuple[int, ...]
    closing: tuple[int, ...]
    trailing: tuple[int, ...] = field(repr=False)


def lay_out(
    config: ModelConfig,
    role: Sequence[int],
    text_ids: Sequence[int],
    *,
    reference_ids: Sequence[int] = (),
    n_frames: int = 0,
    language: str | None = None,
) -> Layout:
    """Lay out a prompt.

    Args:
        config: Configuration of the checkpoint.
        role: Tokens at the start of every prompt.
        text_ids: Tokens of the text, at least one.
        reference_ids: Tokens of the reference's transcript; empty with a speaker embedding alone.
        n_frames: Frames of the reference.
        language: Name of the language in the checkpoint; None lets the model infer it.

    Raises:
        ValueError: There is no text, or the checkpoint does not know the language.
    """
    if not text_ids:
        raise ValueError("there is no text to speak")
    tokens, control = config.tokens, config.talker.codes
    steering: tuple[int, ...] = (control.no_think, control.think_bos, control.think_eos)
    if language is not None:
        languages = config.talker.languages
        if language not in languages:
            raise ValueError(f"the language {language!a} is not one of {', '.join(sorted(languages))}")
        steering = (control.think, control.think_bos, languages[language], control.think_eos)
    spoken = [*reference_ids, *text_ids, tokens.eos]
    n_laid = 1 + n_frames
    over = [*spoken[:n_laid], *[tokens.pad] * (n_laid - len(spoken))]
    head = [*role, *[tokens.pad] * (len(steering) + 1), tokens.bos]
    return Layout((*head, *over), steering, (control.pad, control.bos), tuple(spoken[n_laid:]))
