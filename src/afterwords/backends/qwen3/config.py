"""Configuration of a checkpoint: sizes, control ids, languages and sampling.

Read from config.json and generation_config.json, by the same code for both sizes of the model. Where a published file
omits a field, the default is that of the reference package, qwen-tts 0.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from afterwords.errors import ModelError

HINT: Final = "use a 12 Hz Base checkpoint of Qwen3-TTS, or download it again if it is one."
N_CONTROL_IDS: Final = 1024
"""Control ids at the end of the talker's vocabulary. Source: qwen-tts 0.1.1, `generate`."""
WIDEST_TOP_K: Final = 128
"""The largest top_k."""
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
"""Name of each language in the checkpoints, by its two-letter code."""

PositiveInts = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
"""From a JSON list, whose items are strict."""
Id = Annotated[int, Field(ge=0)]


class CheckpointSection(BaseModel):
    """A JSON object of a checkpoint; unknown fields are ignored, and null means absent.

    `nested` names the fields that are read from the keys of this same object.
    """

    model_config = ConfigDict(frozen=True, strict=True)
    nested: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None} | dict.fromkeys(cls.nested, values)


SectionT = TypeVar("SectionT", bound=CheckpointSection)


def read_section(path: Path, kind: type[SectionT]) -> SectionT:
    """Read a JSON file of a checkpoint.

    Raises:
        ModelError: The file is missing, is not JSON, or a field is missing or has an unsupported value.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError.for_file(str(path), why="is missing", hint=HINT) from error
    except OSError as error:
        raise ModelError.for_file(str(path), why=f"can't be read ({error.strerror})", hint=HINT) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("stack", "codes", "tokens"))
        problem = first["msg"].removeprefix("Value error, ")
        if first["loc"] and first["type"] != "missing" and isinstance(first["input"], str | int | float):
            problem += f", not {first['input']!r}"
        why = f"can't be used: {field}{': ' if field else ''}{problem}"
        raise ModelError.for_file(str(path), why=why, hint=HINT) from error


class StackConfig(CheckpointSection):
    """Sizes of a stack of decoder layers."""

    n_layers: PositiveInt = Field(alias="num_hidden_layers")
    hidden: PositiveInt = Field(alias="hidden_size")
    ffn: PositiveInt = Field(alias="intermediate_size")
    n_heads: PositiveInt = Field(alias="num_attention_heads")
    n_kv_heads: PositiveInt = Field(alias="num_key_value_heads")
    head_dim: PositiveInt
    norm_eps: PositiveFloat = Field(alias="rms_norm_eps")
    rope_theta: PositiveFloat
    attention_bias: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"num_key_value_heads is {self.n_kv_heads}, which does not divide {self.n_heads} heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, which is odd")
        return self


class _RopeScaling(CheckpointSection):
    """Its sections give axes of their own to images; speech has the same position on all axes."""

    rope_type: Literal["default"] = "default"
    type: Literal["default"] = "default"


class _LanguageStackConfig(StackConfig):
    """A stack of the talker or the code predictor."""

    norm_eps: PositiveFloat = Field(default=1e-6, alias="rms_norm_eps")
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: _RopeScaling | None = None
    hidden_act: Literal["silu"] = "silu"
    use_sliding_window: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _default_head_dim(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("head_dim") is None:
            hidden, n_heads = values.get("hidden_size"), values.get("num_attention_heads")
            if isinstance(hidden, int) and isinstance(n_heads, int) and n_heads > 0:
                return {**values, "head_dim": hidden // n_heads}
        return values


class PredictorConfig(CheckpointSection):
    """The code predictor. `vocab` is the number of codes in each codebook."""

    nested = ("stack",)

    stack: _LanguageStackConfig
    vocab: PositiveInt = Field(alias="vocab_size")
    n_code_groups: PositiveInt = Field(alias="num_code_groups")


class ControlCodes(CheckpointSection):
    """Control ids in the talker's vocabulary."""

    pad: Id = Field(alias="codec_pad_id")
    bos: Id = Field(alias="codec_bos_id")
    eos: Id = Field(alias="codec_eos_token_id")
    think: Id = Field(alias="codec_think_id")
    no_think: Id = Field(alias="codec_nothink_id")
    think_bos: Id = Field(alias="codec_think_bos_id")
    think_eos: Id = Field(alias="codec_think_eos_id")


class ControlTokens(CheckpointSection):
    """Control ids in the text vocabulary."""

    im_start: Id = Field(alias="im_start_token_id")
    im_end: Id = Field(alias="im_end_token_id")
    pad: Id = Field(alias="tts_pad_token_id")
    bos: Id = Field(alias="tts_bos_token_id")
    eos: Id = Field(alias="tts_eos_token_id")


class TalkerConfig(CheckpointSection):
    """The talker.

    Attributes:
        vocab: Size of its vocabulary: codes of the first codebook, then control ids.
        n_code_groups: Codes per frame.
        languages: Id of each language, by its name in the checkpoint; dialects are left out.
        max_positions: The longest context that it was trained for.
    """

    nested = ("stack", "codes")

    stack: _LanguageStackConfig
    codes: ControlCodes
    predictor: PredictorConfig = Field(alias="code_predictor_config")
    vocab: int = Field(alias="vocab_size", gt=N_CONTROL_IDS)
    n_code_groups: int = Field(alias="num_code_groups", ge=2)
    text_vocab: PositiveInt = Field(alias="text_vocab_size")
    text_hidden: PositiveInt = Field(alias="text_hidden_size")
    language_ids: dict[str, int] = Field(alias="codec_language_id")
    max_positions: PositiveInt = Field(default=32768, alias="max_position_embeddings")

    @property
    def languages(self) -> dict[str, int]:
        return {name: number for name, number in self.language_ids.items() if "dialect" not in name}

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        _check_ids(self.codes, self.vocab)
        for name, number in self.language_ids.items():
            if not 0 <= number < self.vocab:
                raise ValueError(f"codec_language_id gives {name} the id {number}, beyond vocab_size")
        if self.predictor.n_code_groups != self.n_code_groups:
            raise ValueError(f"code_predictor_config.num_code_groups is not {self.n_code_groups}")
        if self.predictor.vocab > self.vocab - N_CONTROL_IDS:
            raise ValueError(f"code_predictor_config.vocab_size is larger than {self.vocab - N_CONTROL_IDS}")
        return self


class SpeakerConfig(CheckpointSection):
    """The speaker encoder, an ECAPA-TDNN over mel frames. Published files state only its width and sample rate."""

    width: PositiveInt = Field(alias="enc_dim")
    n_mels: PositiveInt = Field(default=128, alias="mel_dim")
    channels: PositiveInts = Field(default=(512, 512, 512, 512, 1536), alias="enc_channels")
    kernels: PositiveInts = Field(default=(5, 3, 3, 3, 1), alias="enc_kernel_sizes")
    dilations: PositiveInts = Field(default=(1, 2, 3, 4, 1), alias="enc_dilations")
    attention_channels: PositiveInt = Field(default=128, alias="enc_attention_channels")
    res2net_scale: int = Field(default=8, ge=2, alias="enc_res2net_scale")
    se_channels: PositiveInt = Field(default=128, alias="enc_se_channels")
    sample_rate: PositiveInt = 24_000

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if not 3 <= len(self.channels) == len(self.kernels) == len(self.dilations):
            raise ValueError("enc_channels does not match enc_kernel_sizes and enc_dilations")
        return self


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one utterance.

    Attributes:
        temperature: Temperature of the first codebook; 0 is greedy.
        top_k: Number of most likely codes to sample from.
        top_p: Probability mass to sample from, within top_k.
        repetition_penalty: Penalty on codes of the first codebook that were sampled before.
        predictor_temperature, predictor_top_k, predictor_top_p: The same for the other codebooks.
        min_frames: Number of frames before the utterance may end.
        seed: The same seed and prompt give the same codes, whatever else is in the batch.
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
        """Raise ValueError for a parameter out of range."""
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
        """Whether a top_p excludes any code."""
        return min(self.top_p, self.predictor_top_p) < 1


_DEFAULTS: Final = Sampling()


class _ConfigFile(CheckpointSection):
    """config.json."""

    nested = ("tokens",)

    model_type: Literal["qwen3_tts"]
    tokenizer_type: Literal["qwen3_tts_tokenizer_12hz"]
    tts_model_type: Literal["base"]
    talker: TalkerConfig = Field(alias="talker_config")
    speaker: SpeakerConfig = Field(alias="speaker_encoder_config")
    tokens: ControlTokens

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        _check_ids(self.tokens, self.talker.text_vocab)
        if self.speaker.width != self.talker.stack.hidden:
            raise ValueError(f"speaker_encoder_config.enc_dim is not {self.talker.stack.hidden}")
        return self


class _GenerationFile(CheckpointSection):
    """generation_config.json."""

    do_sample: bool = True
    temperature: PositiveFloat = _DEFAULTS.temperature
    top_k: int = _DEFAULTS.top_k
    top_p: float = _DEFAULTS.top_p
    repetition_penalty: float = _DEFAULTS.repetition_penalty
    subtalker_dosample: bool = True
    subtalker_temperature: PositiveFloat = _DEFAULTS.predictor_temperature
    subtalker_top_k: int = _DEFAULTS.predictor_top_k
    subtalker_top_p: float = _DEFAULTS.predictor_top_p
    max_new_tokens: PositiveInt = 2048

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        self.to_sampling()
        return self

    def to_sampling(self) -> Sampling:
        """Return the sampling parameters; raise ValueError if one is out of range."""
        return Sampling(
            temperature=self.temperature if self.do_sample else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            predictor_temperature=self.subtalker_temperature if self.subtalker_dosample else 0.0,
            predictor_top_k=self.subtalker_top_k,
            predictor_top_p=self.subtalker_top_p,
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Configuration of a checkpoint's model."""

    talker: TalkerConfig
    tokens: ControlTokens
    speaker: SpeakerConfig
    sampling: Sampling
    max_frames: int


def read_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint.

    Raises:
        ModelError: A file or field is missing, or has an unsupported value.
    """
    model = read_section(folder / "config.json", _ConfigFile)
    generation = read_section(folder / "generation_config.json", _GenerationFile)
    return ModelConfig(
        talker=model.talker,
        tokens=model.tokens,
        speaker=model.speaker,
        sampling=generation.to_sampling(),
        max_frames=generation.max_new_tokens,
    )


def _check_ids(ids: CheckpointSection, vocab: int) -> None:
    for name, field in type(ids).model_fields.items():
        if getattr(ids, name) >= vocab:
            raise ValueError(f"{field.alias} is {getattr(ids, name)}, beyond a vocabulary of {vocab}")
