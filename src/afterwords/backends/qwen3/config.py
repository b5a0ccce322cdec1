"""What a checkpoint says of itself: sizes, control ids, languages and how it wishes codes to be drawn.

All of it is read from config.json and generation_config.json; nothing here knows one size of the model from another.
Where a published file leaves a field out, the value is the one that the reference package falls back on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from afterwords.backends.qwen3.fields import HINT, Fields
from afterwords.errors import ModelFileError

# The talker's vocabulary ends in as many ids that steer and never sound. Source: qwen-tts 0.1.1, `generate`.
N_CONTROL_IDS: Final = 1024
WIDEST_TOP_K: Final = 128
"""The most codes that a draw can be among."""
LANGUAGE_NAMES: Final = {
    "zh": "chinese",
    "en": "english",
    "ja": "japanese",
    "ko": "korean",
    "de": "german",
    "fr": "french",
    "ru": "russian",
    "pt": "portuguese",
    "es": "spanish",
    "it": "italian",
}
"""What the checkpoints call a language, by its two letters."""


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The sizes of a stack of decoder layers."""

    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True)
class PredictorConfig:
    """The code predictor: its stack, and how many codes each codebook has."""

    stack: StackConfig
    vocab: int


@dataclass(frozen=True, slots=True)
class ControlCodes:
    """Ids of the talker's vocabulary that steer it."""

    pad: int
    bos: int
    eos: int
    think: int
    no_think: int
    think_bos: int
    think_eos: int


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the text vocabulary that steer the talker."""

    im_start: int
    im_end: int
    pad: int
    bos: int
    eos: int


@dataclass(frozen=True, slots=True)
class TalkerConfig:
    """The talker: its stack, its two vocabularies and its control ids.

    Attributes:
        vocab: codes of the first codebook, then control ids.
        n_code_groups: codes of a frame.
        languages: id of each language by the checkpoint's own name; dialects are not among them.
        max_positions: the longest it was made for.
    """

    stack: StackConfig
    vocab: int
    n_code_groups: int
    text_vocab: int
    text_hidden: int
    codes: ControlCodes
    languages: Mapping[str, int]
    max_positions: int


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """The speaker encoder, an ECAPA-TDNN over mel frames."""

    n_mels: int
    width: int
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    attention_channels: int
    res2net_scale: int
    se_channels: int
    sample_rate: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the codes of one utterance are drawn.

    Attributes:
        temperature: of the first codebook; 0 takes the likeliest.
        top_k: draw from so many of the likeliest.
        top_p: and from no more of them than hold this share.
        repetition_penalty: on codes of the first codebook that were drawn before.
        predictor_temperature, predictor_top_k, predictor_top_p: the same for the other codebooks.
        min_frames: the utterance does not end before it has so many.
        seed: the same seed and prompt give the same codes, whatever else is spoken beside them.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    predictor_temperature: float = 0.9
    predictor_top_k: int = 50
    predictor_top_p: float = 1.0
    min_frames: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what can't be drawn with, as a ValueError."""
        if min(self.temperature, self.predictor_temperature) < 0:
            raise ValueError("a temperature can't be below 0")
        if not 1 <= min(self.top_k, self.predictor_top_k) <= max(self.top_k, self.predictor_top_k) <= WIDEST_TOP_K:
            raise ValueError(f"top_k must lie between 1 and {WIDEST_TOP_K}")
        if not 0 < min(self.top_p, self.predictor_top_p) <= max(self.top_p, self.predictor_top_p) <= 1:
            raise ValueError("top_p must lie above 0 and not above 1")
        if not self.repetition_penalty > 0:
            raise ValueError("repetition_penalty must lie above 0")

    @property
    def limits_share(self) -> bool:
        """Whether a top_p leaves anything out."""
        return min(self.top_p, self.predictor_top_p) < 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checkpoint's model."""

    talker: TalkerConfig
    predictor: PredictorConfig
    tokens: ControlTokens
    speaker: SpeakerConfig
    sampling: Sampling
    max_frames: int


def read_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint.

    Raises:
        ModelFileError: a file or field is missing, or says something that this modelling does not know.
    """
    fields = Fields.read(folder / "config.json")
    fields.expect("model_type", "qwen3_tts")
    fields.expect("tokenizer_type", "qwen3_tts_tokenizer_12hz")
    fields.expect("tts_model_type", "base")
    talker = fields.section("talker_config")
    config = _talker(talker)
    generation = Fields.read(folder / "generation_config.json")
    return ModelConfig(
        talker=config,
        predictor=_predictor(talker.section("code_predictor_config"), config),
        tokens=_tokens(fields, config.text_vocab),
        speaker=_speaker(fields.section("speaker_encoder_config"), config),
        sampling=_sampling(generation),
        max_frames=generation.integer("max_new_tokens", default=2048),
    )


def _talker(fields: Fields) -> TalkerConfig:
    vocab = fields.integer("vocab_size", least=N_CONTROL_IDS + 1)
    languages = {name: number for name, number in fields.ids("codec_language_id").items() if "dialect" not in name}
    for name, number in languages.items():
        if not 0 <= number < vocab:
            fields.refuse("codec_language_id", f"gives {name} the id {number}, beyond vocab_size")

    def code(name: str) -> int:
        return _id(fields, name, vocab)

    return TalkerConfig(
        stack=_stack(fields),
        vocab=vocab,
        n_code_groups=fields.integer("num_code_groups", least=2),
        text_vocab=fields.integer("text_vocab_size"),
        text_hidden=fields.integer("text_hidden_size"),
        codes=ControlCodes(
            pad=code("codec_pad_id"),
            bos=code("codec_bos_id"),
            eos=code("codec_eos_token_id"),
            think=code("codec_think_id"),
            no_think=code("codec_nothink_id"),
            think_bos=code("codec_think_bos_id"),
            think_eos=code("codec_think_eos_id"),
        ),
        languages=languages,
        max_positions=fields.integer("max_position_embeddings", default=32768),
    )


def _predictor(fields: Fields, talker: TalkerConfig) -> PredictorConfig:
    fields.expect("num_code_groups", talker.n_code_groups)
    vocab = fields.integer("vocab_size")
    if vocab > talker.vocab - N_CONTROL_IDS:
        fields.refuse("vocab_size", f"is {vocab}, more codes than the talker's vocabulary has")
    return PredictorConfig(stack=_stack(fields), vocab=vocab)


def _stack(fields: Fields) -> StackConfig:
    fields.expect("hidden_act", "silu", default="silu")
    fields.expect("attention_bias", expected=False, default=False)
    fields.expect("use_sliding_window", expected=False, default=False)
    if fields.has("rope_scaling"):
        # Its sections give axes of their own to pictures; speech has the same position on all of them.
        scaling = fields.section("rope_scaling")
        scaling.expect("rope_type" if scaling.has("rope_type") else "type", "default", default="default")
    shared_dim = fields.integer("hidden_size") // fields.integer("num_attention_heads")
    return read_stack(
        fields,
        head_dim=fields.integer("head_dim", default=shared_dim),
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        rope_theta=fields.number("rope_theta", default=10_000.0),
    )


def read_stack(fields: Fields, *, head_dim: int, norm_eps: float, rope_theta: float) -> StackConfig:
    """The sizes of a stack, with what may be stated under other names or not at all.

    Raises:
        ModelFileError: a field is missing, or its heads can't be made.
    """
    n_heads, n_kv_heads = fields.integer("num_attention_heads"), fields.integer("num_key_value_heads")
    if n_heads % n_kv_heads:
        fields.refuse("num_key_value_heads", f"is {n_kv_heads}, which does not divide {n_heads} heads")
    if head_dim % 2:
        fields.refuse("head_dim", f"is {head_dim}, which has no halves to rotate")
    return StackConfig(
        n_layers=fields.integer("num_hidden_layers"),
        hidden=fields.integer("hidden_size"),
        ffn=fields.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=norm_eps,
        rope_theta=rope_theta,
    )


def _tokens(fields: Fields, vocab: int) -> ControlTokens:
    return ControlTokens(
        im_start=_id(fields, "im_start_token_id", vocab),
        im_end=_id(fields, "im_end_token_id", vocab),
        pad=_id(fields, "tts_pad_token_id", vocab),
        bos=_id(fields, "tts_bos_token_id", vocab),
        eos=_id(fields, "tts_eos_token_id", vocab),
    )


def _id(fields: Fields, name: str, vocab: int) -> int:
    number = fields.integer(name, least=0)
    if number >= vocab:
        fields.refuse(name, f"is {number}, beyond a vocabulary of {vocab}")
    return number


def _speaker(fields: Fields, talker: TalkerConfig) -> SpeakerConfig:
    # Published files give the width and the rate; the rest is as in qwen-tts 0.1.1.
    fields.expect("enc_dim", talker.stack.hidden)
    channels = fields.integers("enc_channels", default=(512, 512, 512, 512, 1536))
    kernels = fields.integers("enc_kernel_sizes", default=(5, 3, 3, 3, 1))
    dilations = fields.integers("enc_dilations", default=(1, 2, 3, 4, 1))
    if not 3 <= len(channels) == len(kernels) == len(dilations):
        fields.refuse("enc_channels", "does not fit enc_kernel_sizes and enc_dilations")
    return SpeakerConfig(
        n_mels=fields.integer("mel_dim", default=128),
        width=talker.stack.hidden,
        channels=channels,
        kernels=kernels,
        dilations=dilations,
        attention_channels=fields.integer("enc_attention_channels", default=128),
        res2net_scale=fields.integer("enc_res2net_scale", least=2, default=8),
        se_channels=fields.integer("enc_se_channels", default=128),
        sample_rate=fields.integer("sample_rate", default=24_000),
    )


def _sampling(fields: Fields) -> Sampling:
    fallback = Sampling()
    temperature = fields.number("temperature", default=fallback.temperature)
    predictor_temperature = fields.number("subtalker_temperature", default=fallback.predictor_temperature)
    try:
        return Sampling(
            temperature=temperature if fields.flag("do_sample", default=True) else 0.0,
            top_k=fields.integer("top_k", default=fallback.top_k),
            top_p=fields.number("top_p", default=fallback.top_p),
            repetition_penalty=fields.number("repetition_penalty", default=fallback.repetition_penalty),
            predictor_temperature=predictor_temperature if fields.flag("subtalker_dosample", default=True) else 0.0,
            predictor_top_k=fields.integer("subtalker_top_k", default=fallback.predictor_top_k),
            predictor_top_p=fields.number("subtalker_top_p", default=fallback.predictor_top_p),
        )
    except ValueError as error:
        raise ModelFileError(str(fields.path), why=f"can't be used: {error}", hint=HINT) from error
