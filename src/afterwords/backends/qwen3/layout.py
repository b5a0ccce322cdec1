"""Where everything stands in a prompt: columns of text laid over codes, and the text that follows frame by frame.

A column is the sum of a text track and a code track:

    text  | role (3) | pad ... pad            bos | the text, or the reference's text and the text
    codes |          | think, language, speaker, pad | bos, and in context the frames of the reference

In context, the model continues a recording whose words it is told; with a speaker embedding alone, it starts anew.
Numbers only, so that torch and MLX write the same prompt.
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
        text: token of each column.
        steering: control codes under the columns behind the role, as far as the speaker embedding.
        closing: control codes behind the speaker embedding; the frames of a reference follow them to the last column.
        trailing: tokens that are heard one a frame, after the columns.
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
        config: of the checkpoint.
        role: tokens that every prompt begins with.
        text_ids: tokens of what is to be spoken, at least one.
        reference_ids: tokens of what is said in the reference; none where the speaker embedding has to do.
        n_frames: of the reference.
        language: by the checkpoint's own name; None lets the model hear it from the text.

    Raises:
        ValueError: there is no text, or the language is none of the checkpoint's.
    """
    if not text_ids:
        raise ValueError("there is no text to speak")
    tokens, control = config.tokens, config.talker.codes
    steering: tuple[int, ...] = (control.no_think, control.think_bos, control.think_eos)
    if language is not None:
        steering = (control.think, control.think_bos, _language(config, language), control.think_eos)
    spoken = [*reference_ids, *text_ids, tokens.eos]
    n_laid = 1 + n_frames
    over = [*spoken[:n_laid], *[tokens.pad] * (n_laid - len(spoken))]
    head = [*role, *[tokens.pad] * (len(steering) + 1), tokens.bos]
    return Layout((*head, *over), steering, (control.pad, control.bos), tuple(spoken[n_laid:]))


def _language(config: ModelConfig, name: str) -> int:
    languages = config.talker.languages
    if name not in languages:
        raise ValueError(f"the language {name!a} is none of {', '.join(sorted(languages))}")
    return languages[name]
