"""Configuration of the codec: sizes, rates and ratios, from `speech_tokenizer/config.json`."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from afterwords.backends.qwen3.config import (
    HINT,
    N_CONTROL_IDS,
    CheckpointSection,
    ModelConfig,
    PositiveInts,
    StackConfig,
    read_section,
)
from afterwords.errors import ModelError

DOWNSAMPLING: Final = 2
"""Factor by which the encoder lowers the rate after its transformer: 25 to 12.5 frames per second."""


class _DecoderStackConfig(StackConfig):
    hidden_act: Literal["silu"] = "silu"


class _EncoderStackConfig(StackConfig):
    norm_eps: PositiveFloat
    hidden_act: Literal["gelu"] = "gelu"


class CodecDecoderConfig(CheckpointSection):
    """The decoder, from codes to samples.

    Attributes:
        n_codebooks: Codes per frame.
        n_semantic: Number of codebooks, from the first, that have a projection of their own.
        codebook_size: Entries of a codebook. A published file also has semantic_codebook_size 4096; its first codebook
            has codebook_size entries all the same.
        codebook_dim: Width of the sum of a frame's codes.
        latent: Width between the transformer and the convolutions.
        window: Frames that a frame attends to, itself included.
        wave_width: Width of the first stage that makes samples; each stage halves it.
        upsampling_ratios: Ratios of the stages before those.
        upsample_rates: Ratios of the stages that make samples.
    """

    nested = ("stack",)

    stack: _DecoderStackConfig
    n_codebooks: PositiveInt = Field(alias="num_quantizers")
    n_semantic: PositiveInt = Field(default=1, alias="num_semantic_quantizers")
    codebook_size: PositiveInt
    codebook_dim: int = Field(ge=2)
    latent: PositiveInt = Field(alias="latent_dim")
    window: int = Field(ge=2, alias="sliding_window")
    wave_width: PositiveInt = Field(alias="decoder_dim")
    upsampling_ratios: PositiveInts
    upsample_rates: PositiveInts


class CodecEncoderConfig(CheckpointSection):
    """The encoder of Mimi, from samples to codes.

    Attributes:
        n_codebooks: Number of codebooks; a frame has fewer codes.
        n_semantic: Number of codebooks, from the first, that quantize separately.
        n_filters: Width of the first convolution; each ratio doubles it.
        n_residual: Residual units before each ratio.
        compress: Factor by which a residual unit is narrower inside.
        dilation_growth: Factor of the dilation from one residual unit to the next.
        ratios: Downsampling ratios, in the order of their stages.
    """

    nested = ("stack",)

    stack: _EncoderStackConfig
    n_codebooks: PositiveInt = Field(alias="num_quantizers")
    n_semantic: PositiveInt = Field(alias="num_semantic_quantizers")
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    n_filters: PositiveInt = Field(alias="num_filters")
    n_residual: PositiveInt = Field(alias="num_residual_layers")
    compress: PositiveInt
    dilation_growth: PositiveInt = Field(alias="dilation_growth_rate")
    kernel: PositiveInt = Field(alias="kernel_size")
    residual_kernel: PositiveInt = Field(alias="residual_kernel_size")
    last_kernel: PositiveInt = Field(alias="last_kernel_size")
    ratios: PositiveInts = Field(alias="upsampling_ratios")
    quantizer_dim: PositiveInt = Field(alias="vector_quantization_hidden_dimension")
    use_causal_conv: Literal[True] = True
    use_conv_shortcut: Literal[False] = False
    pad_mode: Literal["constant"] = "constant"
    audio_channels: Literal[1] = 1

    @field_validator("ratios")
    @classmethod
    def _reverse(cls, upsampling_ratios: tuple[int, ...]) -> tuple[int, ...]:
        return upsampling_ratios[::-1]

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.quantizer_dim != self.codebook_dim:
            raise ValueError(f"vector_quantization_hidden_dimension is not {self.codebook_dim}")
        return self


class CodecConfig(CheckpointSection):
    """The codec; `n_codebooks` is the number of codes per frame, the last two rates are samples per frame."""

    model_type: Literal["qwen3_tts_tokenizer_12hz"]
    encoder: CodecEncoderConfig = Field(alias="encoder_config")
    decoder: CodecDecoderConfig = Field(alias="decoder_config")
    n_codebooks: PositiveInt = Field(alias="encoder_valid_num_quantizers")
    input_sample_rate: PositiveInt
    output_sample_rate: PositiveInt
    encode_downsample_rate: PositiveInt
    decode_upsample_rate: PositiveInt

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        decoder, encoder = self.decoder, self.encoder
        if self.decode_upsample_rate != prod(decoder.upsampling_ratios + decoder.upsample_rates):
            raise ValueError("decode_upsample_rate is not the product of the decoder's ratios")
        if self.encode_downsample_rate != DOWNSAMPLING * prod(encoder.ratios):
            raise ValueError("encode_downsample_rate is not the product of the encoder's ratios")
        if self.n_codebooks != decoder.n_codebooks:
            raise ValueError(f"encoder_valid_num_quantizers is not {decoder.n_codebooks}")
        if encoder.n_codebooks < decoder.n_codebooks:
            raise ValueError(f"encoder_config.num_quantizers is {encoder.n_codebooks}, fewer than a frame has")
        return self


def read_codec_config(folder: Path) -> CodecConfig:
    """Read config.json of the codec's folder.

    Raises:
        ModelError: The file or a field is missing, or has an unsupported value.
    """
    return read_section(folder / "config.json", CodecConfig)


def check_codes(config: ModelConfig, codec: CodecConfig, folder: Path) -> None:
    """Check that the codec can decode every code of the talker: any other would be read beyond its table.

    Raises:
        ModelError: They do not match.
    """
    size = codec.decoder.codebook_size
    talker = (config.talker.vocab - N_CONTROL_IDS, config.talker.predictor.vocab, config.talker.n_code_groups)
    if talker != (size, size, codec.n_codebooks):
        why = f"has {codec.n_codebooks} codebooks of {size} codes, which do not match its talker"
        raise ModelError.for_file(str(folder / "config.json"), why=why, hint=HINT)
