"""What `speech_tokenizer/config.json` says of the codec: sizes, rates and ratios, one frozen dataclass a half.

What says something that this modelling does not know is refused by file and field, before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from afterwords.backends.qwen3.config import N_CONTROL_IDS, ModelConfig, StackConfig, read_stack
from afterwords.backends.qwen3.fields import HINT, Fields
from afterwords.errors import ModelFileError

DOWNSAMPLING: Final = 2
"""By which the encoder halves the rate once more, behind its transformer: 25 to 12.5 frames a second."""


@dataclass(frozen=True, slots=True)
class CodecDecoderConfig:
    """The half that makes sound of codes.

    Attributes:
        stack: its transformer.
        n_codebooks: codes of a frame.
        n_semantic: how many of them, the first ones, have a projection of their own.
        codebook_size: entries of a codebook.
        codebook_dim: width of what the codes of a frame add up to.
        latent: width between transformer and convolutions.
        window: frames that a frame sees, itself among them.
        wave_width: of the first stage that makes samples; each stage halves it.
        upsampling_ratios: of the stages before those.
        upsample_rates: of the stages that make samples.
    """

    stack: StackConfig
    n_codebooks: int
    n_semantic: int
    codebook_size: int
    codebook_dim: int
    latent: int
    window: int
    wave_width: int
    upsampling_ratios: tuple[int, ...]
    upsample_rates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CodecEncoderConfig:
    """The half that makes codes of sound, which is Mimi's.

    Attributes:
        stack: its transformer.
        n_codebooks: that it has; a frame has fewer.
        n_semantic: how many of them, the first ones, quantize on their own.
        codebook_size: entries of a codebook.
        codebook_dim: width of an entry.
        n_filters: width of the first convolution; each ratio doubles it.
        n_residual: residual units before each ratio.
        compress: by how much a residual unit is narrower inside.
        dilation_growth: factor from one residual unit to the next.
        kernel: of the first convolution.
        residual_kernel: of the residual units.
        last_kernel: of the last convolution.
        ratios: by which the rate falls, in their order.
    """

    stack: StackConfig
    n_codebooks: int
    n_semantic: int
    codebook_size: int
    codebook_dim: int
    n_filters: int
    n_residual: int
    compress: int
    dilation_growth: int
    kernel: int
    residual_kernel: int
    last_kernel: int
    ratios: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """A codec.

    Attributes:
        encoder: the half that makes codes.
        decoder: the half that makes sound.
        n_codebooks: codes of a frame.
        input_sample_rate: of what is encoded, in Hz.
        output_sample_rate: of what is decoded, in Hz.
        encode_downsample_rate: samples of a frame that is encoded.
        decode_upsample_rate: samples of a frame that is decoded.
    """

    encoder: CodecEncoderConfig
    decoder: CodecDecoderConfig
    n_codebooks: int
    input_sample_rate: int
    output_sample_rate: int
    encode_downsample_rate: int
    decode_upsample_rate: int


def read_codec_config(folder: Path) -> CodecConfig:
    """Read config.json of the codec's folder.

    Raises:
        ModelFileError: a file or field is missing, or says something that this modelling does not know.
    """
    fields = Fields.read(folder / "config.json")
    fields.expect("model_type", "qwen3_tts_tokenizer_12hz")
    encoder, decoder = _encoder(fields.section("encoder_config")), _decoder(fields.section("decoder_config"))
    fields.expect("decode_upsample_rate", prod(decoder.upsampling_ratios + decoder.upsample_rates))
    fields.expect("encode_downsample_rate", DOWNSAMPLING * prod(encoder.ratios))
    fields.expect("encoder_valid_num_quantizers", decoder.n_codebooks)
    if encoder.n_codebooks < decoder.n_codebooks:
        fields.section("encoder_config").refuse("num_quantizers", f"is {encoder.n_codebooks}, fewer than a frame has")
    return CodecConfig(
        encoder=encoder,
        decoder=decoder,
        n_codebooks=decoder.n_codebooks,
        input_sample_rate=fields.integer("input_sample_rate"),
        output_sample_rate=fields.integer("output_sample_rate"),
        encode_downsample_rate=fields.integer("encode_downsample_rate"),
        decode_upsample_rate=fields.integer("decode_upsample_rate"),
    )


def check_codes(config: ModelConfig, codec: CodecConfig, folder: Path) -> None:
    """See that a talker says what its codec can decode: a code beyond its codebook would be read beyond its table.

    Raises:
        ModelFileError: they don't fit one another.
    """
    size = codec.decoder.codebook_size
    stated = (config.talker.vocab - N_CONTROL_IDS, config.predictor.vocab, config.talker.n_code_groups)
    if stated != (size, size, codec.n_codebooks):
        why = f"has {codec.n_codebooks} codebooks of {size} codes, which its talker does not speak"
        raise ModelFileError(str(folder / "config.json"), why=why, hint=HINT)


def _decoder(fields: Fields) -> CodecDecoderConfig:
    fields.expect("hidden_act", "silu", default="silu")
    fields.expect("attention_bias", expected=False, default=False)
    # A published file also says semantic_codebook_size 4096; its first codebook has codebook_size entries all the same.
    return CodecDecoderConfig(
        stack=_stack(fields, "rms_norm_eps"),
        n_codebooks=fields.integer("num_quantizers"),
        n_semantic=fields.integer("num_semantic_quantizers", default=1),
        codebook_size=fields.integer("codebook_size"),
        codebook_dim=fields.integer("codebook_dim", least=2),
        latent=fields.integer("latent_dim"),
        window=fields.integer("sliding_window", least=2),
        wave_width=fields.integer("decoder_dim"),
        upsampling_ratios=fields.integers("upsampling_ratios"),
        upsample_rates=fields.integers("upsample_rates"),
    )


def _encoder(fields: Fields) -> CodecEncoderConfig:
    fields.expect("hidden_act", "gelu", default="gelu")
    fields.expect("attention_bias", expected=False, default=False)
    fields.expect("use_causal_conv", expected=True, default=True)
    fields.expect("use_conv_shortcut", expected=False, default=False)
    fields.expect("pad_mode", "constant", default="constant")
    fields.expect("audio_channels", 1, default=1)
    fields.expect("vector_quantization_hidden_dimension", fields.integer("codebook_dim"))
    return CodecEncoderConfig(
        stack=_stack(fields, "norm_eps"),
        n_codebooks=fields.integer("num_quantizers"),
        n_semantic=fields.integer("num_semantic_quantizers"),
        codebook_size=fields.integer("codebook_size"),
        codebook_dim=fields.integer("codebook_dim"),
        n_filters=fields.integer("num_filters"),
        n_residual=fields.integer("num_residual_layers"),
        compress=fields.integer("compress"),
        dilation_growth=fields.integer("dilation_growth_rate"),
        kernel=fields.integer("kernel_size"),
        residual_kernel=fields.integer("residual_kernel_size"),
        last_kernel=fields.integer("last_kernel_size"),
        ratios=tuple(reversed(fields.integers("upsampling_ratios"))),
    )


def _stack(fields: Fields, eps: str) -> StackConfig:
    head_dim, theta = fields.integer("head_dim"), fields.number("rope_theta")
    return read_stack(fields, head_dim=head_dim, norm_eps=fields.number(eps), rope_theta=theta)
