"""The modules of the package pocket-tts, in a loop of our own; nothing else imports torch or the package.

The package's loop draws noise from torch's global generator, so that a seed holds for one utterance at a time, and it
goes on after its generator is closed (unless `stop` is set). This one makes the same numbers, bit by bit, from a
generator per utterance, and ends with its caller. Threads share the modules: all that changes is in their states.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Generator, Tensor

from afterwords.audio.wav import Samples
from afterwords.backends.base import InvalidPromptError
from afterwords.errors import ModelError

_threads_before = torch.get_num_threads()
from pocket_tts import TTSModel  # noqa: E402 - it sets torch to one thread, for the whole process
from pocket_tts.data.audio_utils import end_on_pause  # noqa: E402
from pocket_tts.models.flow_lm import lsd_decode  # noqa: E402
from pocket_tts.models.text_chunking import prepare_text_prompt  # noqa: E402
from pocket_tts.modules.stateful_module import increment_steps, init_states  # noqa: E402
from pocket_tts.utils.config import CONFIGS_DIR  # noqa: E402

State = dict[str, dict[str, Tensor]]
"""What a model keeps of the past, by layer. For the language model: `cache` [2, 1, positions, heads, 64], `offset`."""
CONFIG: Final = "english_2026-10.yaml"
"""The package's configuration of these weights."""
SAMPLE_RATE: Final = 24_000
FADE: Final = SAMPLE_RATE // 200
"""5 ms of fade-in at the start of a sentence, where a fresh codec clicks. Source: the package's decoder thread."""
MIN_FRAMES_BEFORE_END: Final = 6
"""An end is ignored before: of some voices, it comes before the first word. Source: the package."""


class EndlessSentenceError(Exception):
    """The model did not find the end of a sentence."""


class PocketModel:
    """A loaded checkpoint."""

    def __init__(self, weights: Path, tokenizer: Path) -> None:
        """Load a checkpoint.

        Args:
            weights: Its `model.safetensors`. A `config.yaml` in the same folder describes a model that is not
                the published one, and replaces the package's configuration.
            tokenizer: Its `tokenizer.json`.

        Raises:
            ModelError: A file is damaged, or of another model.
        """
        try:
            self._tts = _load(weights, tokenizer)
        except Exception as error:
            hint = "afterwords models pull pocket --repair"
            why = f"can't be loaded ({type(error).__name__}): it is damaged, or of another model"
            raise ModelError.for_file(str(weights), why=why, hint=hint) from error
        self._flow, self._mimi = self._tts.flow_lm, self._tts.mimi
        self._steps = round(self._mimi.encoder_frame_rate / self._mimi.frame_rate)

    def n_tokens(self, text: str) -> int:
        """Return the number of tokens of a sentence."""
        return self._prepare(text)[0].shape[1]

    @torch.inference_mode()
    def encode(self, samples: Samples) -> NDArray[np.float32]:
        """Return the latents of a recording at 24 kHz, shape (n_frames, n_latents). Memory grows with its square."""
        # It ends on a pause: a voice that breaks off makes the model finish the word first.
        sound = end_on_pause(torch.from_numpy(np.ascontiguousarray(samples))[None], SAMPLE_RATE)
        latents: NDArray[np.float32] = self._mimi.encode_to_latent(sound[None])[0].float().numpy()
        return latents

    @torch.inference_mode()
    def voice(self, latents: NDArray[np.floating[Any]]) -> State:
        """Return the state of the language model after a recording, from its latents: 6 MB for 10 s.

        Raises:
            InvalidPromptError: The latents are those of another model.
        """
        if latents.shape[1] != self._flow.speaker_proj_weight.shape[1]:
            raise InvalidPromptError("not a prompt for pocket: its latents have another width")
        sound = torch.from_numpy(latents.astype(np.float32))[None]
        sound = torch.nn.functional.linear(sound, self._flow.speaker_proj_weight)
        if self._flow.insert_bos_before_voice:
            sound = torch.cat([self._flow.bos_before_voice, sound], dim=1)
        state: State = init_states(self._flow, 1, sound.shape[1])
        self._step(state, sound.new_empty(1, 0, self._flow.ldim), sound)
        return state

    @torch.inference_mode()
    def frames(self, voice: State, sentence: str, generator: Generator) -> Iterator[Tensor]:
        """Generate a sentence as latents of shape (1, 1, n_latents), one for each 80 ms.

        Raises:
            EndlessSentenceError: It did not end by itself, and is cut.
        """
        tokens, n_after_end = self._prepare(sentence)
        n_most = self._longest(tokens)
        state = _extended(voice, tokens.shape[1] + n_most)
        latent = self._flow.bos_emb.expand(1, 1, -1)
        self._step(state, latent[:, :0], self._flow.conditioner(tokens))
        self._noise(generator)  # the package draws one for the text too
        n_left: int | None = None
        no_text = latent.new_empty(1, 0, self._flow.dim)
        for n_before in range(n_most):
            hidden = self._step(state, latent, no_text)
            flow = partial(self._flow.flow_net, hidden)
            latent = lsd_decode(flow, self._noise(generator), self._tts.sampler_decode_steps)[:, None]
            is_end = bool(self._flow.out_eos(hidden) > self._tts.eos_threshold)
            if n_left is None and is_end and n_before >= MIN_FRAMES_BEFORE_END:
                n_left = n_after_end
            if n_left is not None:
                if n_left == 0:
                    return
                n_left -= 1
            yield latent
        raise EndlessSentenceError(f"a sentence of {tokens.shape[1]} tokens did not end after {n_most} frames")

    @torch.inference_mode()
    def decode(self, batches: Iterator[Sequence[Tensor]], sentence: str) -> Iterator[Samples]:
        """Decode the frames of one sentence, as many at once as each batch has."""
        state = init_states(self._mimi, 1, self._steps * self._longest(self._prepare(sentence)[0]))
        fade = torch.linspace(0, 1, FADE)
        for batch in batches:
            latents = torch.cat(list(batch), dim=1) * self._flow.emb_std + self._flow.emb_mean
            sound = self._mimi.decode_from_latent(latents, state)[0, 0]
            increment_steps(self._mimi, state, self._steps * len(batch))
            sound[: len(fade)] *= fade
            fade = fade[:0]
            samples: Samples = sound.numpy()
            yield samples

    def _prepare(self, text: str) -> tuple[Tensor, int]:
        """Return the tokens of a sentence, and the number of frames after its end."""
        tts = self._tts
        text, n_after_end = prepare_text_prompt(
            text,
            tts.pad_with_spaces_for_short_inputs,
            tts.remove_semicolons,
            tts.append_terminal_punctuation,
            tts.capitalize_first_letter,
            tts.replace_characters,
        )
        recommended = tts.model_recommended_frames_after_eos
        return self._flow.conditioner.prepare(text), n_after_end + 2 if recommended is None else recommended

    def _longest(self, tokens: Tensor) -> int:
        """Return the most frames that a sentence may have: a third of a second for each token, and 2 s."""
        return math.ceil((tokens.shape[1] / 3.0 + 2.0) * self._mimi.frame_rate)

    def _step(self, state: State, latents: Tensor, embeddings: Tensor) -> Tensor:
        """Run the language model over embeddings or latents, and return what the last position became."""
        hidden = self._flow.backbone(self._flow.input_linear(latents), embeddings, latents, model_state=state)
        increment_steps(self._flow, state, latents.shape[1] + embeddings.shape[1])
        last: Tensor = hidden[:, -1].float()
        return last

    def _noise(self, generator: Generator) -> Tensor:
        return torch.empty(1, self._flow.ldim).normal_(0, self._tts.temp**0.5, generator=generator)


def restore_threads() -> None:
    """Give torch the threads that it had before this module was imported."""
    torch.set_num_threads(_threads_before)


def _extended(voice: State, n_more: int) -> State:
    """Return a copy of a state with room for more positions."""
    return {
        layer: {
            name: torch.nn.functional.pad(part, (0, 0, 0, 0, 0, n_more)) if name == "cache" else part.clone()
            for name, part in parts.items()
        }
        for layer, parts in voice.items()
    }


def _load(weights: Path, tokenizer: Path) -> TTSModel:
    torch.set_num_threads(1)  # it speaks with two threads of its own, which more threads would only slow down
    own = weights.with_name("config.yaml")
    config = yaml.safe_load((own if own.is_file() else CONFIGS_DIR / CONFIG).read_text("utf-8"))
    config["weights_path"] = str(weights.absolute())
    config["flow_lm"]["lookup_table"]["tokenizer_path"] = str(tokenizer.absolute())
    # Without access, the package falls back in silence to weights that can't clone, and takes a recording all the same.
    config.pop("weights_path_without_voice_cloning", None)
    quiet = logging.NullHandler()
    logging.getLogger().addHandler(quiet)  # or its `logging.info` adds one that writes to stderr, for every library
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
            tts = TTSModel.load_model(
                config=path
            )  # int8 has no gain: the codec becomes the limit; 3 x slower by torchao
    finally:
        logging.getLogger().removeHandler(quiet)
    if tts.flow_lm.flow_type != "lsd" or tts.sample_rate != SAMPLE_RATE or not tts.has_voice_cloning:
        raise ValueError("a model of another kind")
    return tts
