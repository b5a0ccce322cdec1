"""Make a Qwen3-TTS checkpoint of about 1 MB with random weights, which loads and runs as a published one does.

Names, shapes and files are those that the reference package writes; only the sizes are small. The weights come from
numpy's PCG64, each tensor from a seed of its own name, so that every machine makes the same file and a tensor added
later changes no other. They are drawn wide: with the usual 0.02 a model this small says the same to any text.
Tests make it in a temporary folder; `python -m scripts.make_qwen3_tiny FOLDER` makes one to look at.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Json = dict[str, Any]

CONTROL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
)
# "assistant" must be one token, as in the real vocabulary; the others let a tokenizer go wrong in the usual ways:
# digits that must stay apart, spaces, line breaks, contractions, letters of several bytes.
# fmt: off
MERGES: Final = (
    "a s", "i s", "t a", "as s", "ass is", "assis ta", "n t", "assista nt",
    "h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "r l", "Ġwo rl", "Ġworl d", "t he", "Ġ the",
    "1 2", "Ġ 1", "' s", "Ċ Ċ", "Ġ Ġ", "ĠĠ ĠĠ", "! !", "ä ½", "ä½ ł", "å ¥", "å¥ ½", "ð Ł", "ðŁ ĺ", "Ã ©",
)
# fmt: on
HIDDEN: Final = 32
N_CODES: Final = 64
N_CONTROL_CODES: Final = 1024  # the last ids of the talker's vocabulary, as in the published 3072 = 2048 + 1024
N_CODE_GROUPS: Final = 16
TEXT_VOCAB: Final = 320


def make_checkpoint(
    folder: Path, *, predictor_hidden: int = 16, n_layers: int = 2, n_predictor_layers: int = 2
) -> Path:
    """Write a complete checkpoint.

    Args:
        folder: made if need be; files in it are replaced.
        predictor_hidden: width of the code predictor. At 32 it is as wide as the talker, as in the published 0.6B, and
            there is no projection between the two; else there is one, as in the 1.7B.
        n_layers: of the talker.
        n_predictor_layers: of the code predictor.

    Returns:
        The folder.
    """
    config = model_config(predictor_hidden=predictor_hidden, n_layers=n_layers, n_predictor_layers=n_predictor_layers)
    write_all_but_weights(folder, config, CODEC)
    _write_weights(folder / "model.safetensors", [*talker_shapes(config), *speaker_shapes(config)])
    shapes = [*codec_encoder_shapes(), *codec_decoder_shapes()]
    _write_weights(folder / "speech_tokenizer" / "model.safetensors", shapes)
    return folder


def write_all_but_weights(folder: Path, config: Json, codec_config: Json) -> None:
    """Write the configuration and the vocabulary of a checkpoint.

    Args:
        folder: made if need be.
        config: as `model_config`, of any sizes.
        codec_config: as `CODEC`, of any sizes.
    """
    codec = folder / "speech_tokenizer"
    codec.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", GENERATION)
    _write_json(folder / "preprocessor_config.json", {"processor_class": "Qwen3TTSProcessor"})
    _write_json(codec / "config.json", codec_config)
    _write_json(codec / "preprocessor_config.json", FEATURES)


# -- what the files say ------------------------------------------------------------------------------------------

GENERATION: Final[Json] = {
    "do_sample": True,
    "temperature": 0.9,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.05,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_p": 1.0,
    "subtalker_top_k": 50,
    "max_new_tokens": 8192,
}
FEATURES: Final[Json] = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}


def model_config(*, predictor_hidden: int, n_layers: int, n_predictor_layers: int) -> Json:
    """Return the content of config.json, with the keys of a published one."""
    first_token = 256 + len(MERGES)
    token = {name: first_token + place for place, name in enumerate(CONTROL_TOKENS)}
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "tiny",
        "tts_model_type": "base",
        "im_start_token_id": token["<|im_start|>"],
        "im_end_token_id": token["<|im_end|>"],
        "tts_pad_token_id": token["<tts_pad>"],
        "tts_bos_token_id": token["<tts_text_bos>"],
        "tts_eos_token_id": token["<tts_text_eod>"],
        "speaker_encoder_config": {
            "mel_dim": 128,
            "enc_dim": HIDDEN,
            "enc_channels": [16, 16, 16, 16, 48],
            "enc_kernel_sizes": [5, 3, 3, 3, 1],
            "enc_dilations": [1, 2, 3, 4, 1],
            "enc_attention_channels": 8,
            "enc_res2net_scale": 2,
            "enc_se_channels": 8,
            "sample_rate": 24000,
        },
        "talker_config": {
            "model_type": "qwen3_tts_talker",
            "vocab_size": N_CODES + N_CONTROL_CODES,
            "text_vocab_size": TEXT_VOCAB,
            "text_hidden_size": 24,
            "num_code_groups": N_CODE_GROUPS,
            "position_id_per_seconds": 13,
            **_stack_config(n_layers, hidden=HIDDEN, ffn=64, heads=4, kv_heads=2, head_dim=16),
            "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "codec_pad_id": N_CODES + 100,
            "codec_bos_id": N_CODES + 101,
            "codec_eos_token_id": N_CODES + 102,
            "codec_think_id": N_CODES + 106,
            "codec_nothink_id": N_CODES + 107,
            "codec_think_bos_id": N_CODES + 108,
            "codec_think_eos_id": N_CODES + 109,
            "codec_language_id": {"chinese": N_CODES + 7, "english": N_CODES + 2, "german": N_CODES + 5},
            "spk_id": {},
            "spk_is_dialect": {},
            "code_predictor_config": {
                "model_type": "qwen3_tts_talker_code_predictor",
                "vocab_size": N_CODES,
                "num_code_groups": N_CODE_GROUPS,
                "layer_types": ["full_attention"] * n_predictor_layers,
                **_stack_config(n_predictor_layers, hidden=predictor_hidden, ffn=32, heads=2, kv_heads=1, head_dim=8),
                "rope_scaling": None,
            },
        },
    }


def _stack_config(n_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
    }


CODEC: Final[Json] = {
    "architectures": ["Qwen3TTSTokenizerV2Model"],
    "model_type": "qwen3_tts_tokenizer_12hz",
    "input_sample_rate": 24000,
    "output_sample_rate": 24000,
    "encode_downsample_rate": 1920,
    "decode_upsample_rate": 1920,
    "encoder_valid_num_quantizers": N_CODE_GROUPS,
    "encoder_config": {
        "model_type": "mimi",
        "_frame_rate": 12.5,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "audio_channels": 1,
        "codebook_dim": 8,
        "codebook_size": N_CODES,
        "compress": 2,
        "dilation_growth_rate": 2,
        "head_dim": 8,
        "hidden_act": "gelu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "kernel_size": 7,
        "last_kernel_size": 3,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "norm_eps": 1e-05,
        "num_attention_heads": 2,
        "num_filters": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_quantizers": 32,  # of which the first 16 are used
        "num_residual_layers": 1,
        "num_semantic_quantizers": 1,
        "pad_mode": "constant",
        "residual_kernel_size": 3,
        "rope_theta": 10000.0,
        "sampling_rate": 24000,
        "sliding_window": 250,
        "trim_right_ratio": 1.0,
        "upsample_groups": 16,
        "upsampling_ratios": [8, 6, 5, 4],
        "use_cache": False,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
        "use_streaming": False,
        "vector_quantization_hidden_dimension": 8,
    },
    "decoder_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "codebook_dim": 8,
        "codebook_size": N_CODES,
        "decoder_dim": 32,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "latent_dim": 16,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_quantizers": N_CODE_GROUPS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "sliding_window": 72,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    },
}


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {letter: number for number, letter in enumerate(_byte_letters())}
    for merge in MERGES:
        vocabulary[merge.replace(" ", "")] = len(vocabulary)
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8", newline="\n")
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = [{"content": name, **flags, "special": True} for name in CONTROL_TOKENS]
    added.append({"content": "<tool_call>", **flags, "special": False})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": "Qwen3TTSProcessor",
            "model_max_length": 4096,
            "add_prefix_space": False,
            "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "unk_token": None,
            "bos_token": None,
            "errors": "replace",
            "added_tokens_decoder": {str(len(vocabulary) + place): token for place, token in enumerate(added)},
        },
    )


def _byte_letters() -> list[str]:
    """Return the characters of bytes in GPT-2's byte-level BPE, in the order of its vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, shown), *(chr(256 + place) for place in range(256 - len(shown)))]


# -- which tensors there are, in the order of the model ----------------------------------------------------------


def talker_shapes(config: Json) -> Iterator[tuple[str, Shape]]:
    talker = config["talker_config"]
    predictor = talker["code_predictor_config"]
    wide, narrow, text = talker["hidden_size"], predictor["hidden_size"], talker["text_hidden_size"]
    yield "talker.model.text_embedding.weight", (talker["text_vocab_size"], text)
    yield "talker.model.codec_embedding.weight", (talker["vocab_size"], wide)
    yield from _stack_shapes("talker.model", talker)
    yield from _linear("talker.text_projection.linear_fc1", text, text)
    yield from _linear("talker.text_projection.linear_fc2", wide, text)
    yield "talker.codec_head.weight", (talker["vocab_size"], wide)
    yield from _stack_shapes("talker.code_predictor.model", predictor)
    for group in range(predictor["num_code_groups"] - 1):
        yield f"talker.code_predictor.model.codec_embedding.{group}.weight", (predictor["vocab_size"], wide)
        yield f"talker.code_predictor.lm_head.{group}.weight", (predictor["vocab_size"], narrow)
    if wide != narrow:
        yield from _linear("talker.code_predictor.small_to_mtp_projection", narrow, wide)


def _stack_shapes(prefix: str, config: Json) -> Iterator[tuple[str, Shape]]:
    hidden, ffn, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    for layer in range(config["num_hidden_layers"]):
        at = f"{prefix}.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.q_norm.weight", (head_dim,)
        yield f"{at}.self_attn.k_norm.weight", (head_dim,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, ffn)
    yield f"{prefix}.norm.weight", (hidden,)


def speaker_shapes(config: Json) -> Iterator[tuple[str, Shape]]:
    speaker = config["speaker_encoder_config"]
    channels, kernels = speaker["enc_channels"], speaker["enc_kernel_sizes"]
    scale, squeezed, attention = (
        speaker[f"enc_{key}"] for key in ("res2net_scale", "se_channels", "attention_channels")
    )
    yield from _conv("speaker_encoder.blocks.0.conv", channels[0], speaker["mel_dim"], kernels[0])
    for block in range(1, len(channels) - 1):
        at, width = f"speaker_encoder.blocks.{block}", channels[block]
        yield from _conv(f"{at}.tdnn1.conv", width, channels[block - 1], 1)
        for part in range(scale - 1):
            yield from _conv(f"{at}.res2net_block.blocks.{part}.conv", width // scale, width // scale, kernels[block])
        yield from _conv(f"{at}.tdnn2.conv", width, width, 1)
        yield from _conv(f"{at}.se_block.conv1", squeezed, width, 1)
        yield from _conv(f"{at}.se_block.conv2", width, squeezed, 1)
    joined = channels[-1]
    yield from _conv("speaker_encoder.mfa.conv", joined, sum(channels[1:-1]), kernels[-1])
    yield from _conv("speaker_encoder.asp.tdnn.conv", attention, 3 * joined, 1)
    yield from _conv("speaker_encoder.asp.conv", joined, attention, 1)
    yield from _conv("speaker_encoder.fc", speaker["enc_dim"], 2 * joined, 1)


def codec_encoder_shapes() -> Iterator[tuple[str, Shape]]:
    config = CODEC["encoder_config"]
    hidden, width, kernel = config["hidden_size"], config["num_filters"], config["kernel_size"]
    yield from _conv("encoder.encoder.layers.0.conv", width, config["audio_channels"], kernel)
    layer = 1
    for ratio in reversed(config["upsampling_ratios"]):
        inner = width // config["compress"]
        yield from _conv(f"encoder.encoder.layers.{layer}.block.1.conv", inner, width, config["residual_kernel_size"])
        yield from _conv(f"encoder.encoder.layers.{layer}.block.3.conv", width, inner, 1)
        yield from _conv(f"encoder.encoder.layers.{layer + 2}.conv", 2 * width, width, 2 * ratio)
        width, layer = 2 * width, layer + 3
    yield from _conv(f"encoder.encoder.layers.{layer + 1}.conv", hidden, width, config["last_kernel_size"])
    for place in range(config["num_hidden_layers"]):
        at = f"encoder.encoder_transformer.layers.{place}"
        yield from _affine(f"{at}.input_layernorm", hidden)
        yield from _affine(f"{at}.post_attention_layernorm", hidden)
        yield from _attention(f"{at}.self_attn", config)
        yield f"{at}.mlp.fc1.weight", (config["intermediate_size"], hidden)
        yield f"{at}.mlp.fc2.weight", (hidden, config["intermediate_size"])
        yield f"{at}.self_attn_layer_scale.scale", (hidden,)
        yield f"{at}.mlp_layer_scale.scale", (hidden,)
    yield "encoder.downsample.conv.weight", (hidden, hidden, 4)
    semantic, inner = config["num_semantic_quantizers"], config["vector_quantization_hidden_dimension"]
    for kind, count in (("semantic", semantic), ("acoustic", config["num_quantizers"] - semantic)):
        at = f"encoder.quantizer.{kind}_residual_vector_quantizer"
        yield f"{at}.input_proj.weight", (inner, hidden, 1)
        yield f"{at}.output_proj.weight", (hidden, inner, 1)
        for book in range(count):
            yield f"{at}.layers.{book}.codebook.initialized", (1,)
            yield f"{at}.layers.{book}.codebook.cluster_usage", (config["codebook_size"],)
            yield f"{at}.layers.{book}.codebook.embed_sum", (config["codebook_size"], config["codebook_dim"])


def codec_decoder_shapes() -> Iterator[tuple[str, Shape]]:
    config = CODEC["decoder_config"]
    hidden, latent, inner = config["hidden_size"], config["latent_dim"], config["codebook_dim"] // 2
    for kind, count in (("rvq_first", 1), ("rvq_rest", config["num_quantizers"] - 1)):
        at = f"decoder.quantizer.{kind}"
        yield f"{at}.input_proj.weight", (inner, config["codebook_dim"], 1)
        yield f"{at}.output_proj.weight", (config["codebook_dim"], inner, 1)
        for book in range(count):
            yield f"{at}.vq.layers.{book}._codebook.cluster_usage", (config["codebook_size"],)
            yield f"{at}.vq.layers.{book}._codebook.embedding_sum", (config["codebook_size"], inner)
    yield from _conv("decoder.pre_conv.conv", latent, config["codebook_dim"], 3)
    yield from _linear("decoder.pre_transformer.input_proj", hidden, latent)
    for place in range(config["num_hidden_layers"]):
        at = f"decoder.pre_transformer.layers.{place}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield from _attention(f"{at}.self_attn", config)
        for name in ("gate_proj", "up_proj"):
            yield f"{at}.mlp.{name}.weight", (config["intermediate_size"], hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, config["intermediate_size"])
        yield f"{at}.self_attn_layer_scale.scale", (hidden,)
        yield f"{at}.mlp_layer_scale.scale", (hidden,)
    yield "decoder.pre_transformer.norm.weight", (hidden,)
    yield from _linear("decoder.pre_transformer.output_proj", latent, hidden)
    for stage, ratio in enumerate(config["upsampling_ratios"]):
        at = f"decoder.upsample.{stage}"
        yield from _conv(f"{at}.0.conv", latent, latent, ratio)
        yield from _conv(f"{at}.1.dwconv.conv", latent, 1, 7)
        yield from _affine(f"{at}.1.norm", latent)
        yield from _linear(f"{at}.1.pwconv1", 4 * latent, latent)
        yield from _linear(f"{at}.1.pwconv2", latent, 4 * latent)
        yield f"{at}.1.gamma", (latent,)
    yield from _codec_upsampling_shapes(config)


def _codec_upsampling_shapes(config: Json) -> Iterator[tuple[str, Shape]]:
    width = config["decoder_dim"]
    yield from _conv("decoder.decoder.0.conv", width, config["latent_dim"], 7)
    for stage, rate in enumerate(config["upsample_rates"], 1):
        at, inner = f"decoder.decoder.{stage}.block", width // 2
        yield from _snake(f"{at}.0", width)
        yield f"{at}.1.conv.weight", (width, inner, 2 * rate)  # transposed: input channels first
        yield f"{at}.1.conv.bias", (inner,)
        for unit in range(2, 5):
            yield from _snake(f"{at}.{unit}.act1", inner)
            yield from _conv(f"{at}.{unit}.conv1.conv", inner, inner, 7)
            yield from _snake(f"{at}.{unit}.act2", inner)
            yield from _conv(f"{at}.{unit}.conv2.conv", inner, inner, 1)
        width = inner
    last = len(config["upsample_rates"]) + 1
    yield from _snake(f"decoder.decoder.{last}", width)
    yield from _conv(f"decoder.decoder.{last + 1}.conv", 1, width, 7)


def _attention(at: str, config: Json) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"{at}.{name}.weight", (inner, hidden)
    yield f"{at}.o_proj.weight", (hidden, inner)


def _linear(at: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.weight", (outputs, inputs)
    yield f"{at}.bias", (outputs,)


def _conv(at: str, outputs: int, inputs: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.weight", (outputs, inputs, kernel)
    yield f"{at}.bias", (outputs,)


def _affine(at: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.weight", (width,)
    yield f"{at}.bias", (width,)


def _snake(at: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.alpha", (width,)
    yield f"{at}.beta", (width,)


# -- what stands in them -----------------------------------------------------------------------------------------


def _write_weights(path: Path, shapes: list[tuple[str, Shape]]) -> None:
    from safetensors.numpy import save_file

    save_file({name: _drawn(name, shape) for name, shape in shapes}, path, metadata={"format": "pt"})


def _drawn(name: str, shape: Shape) -> NDArray[np.float32]:
    """Return a tensor with a spread in which each input, norm and bias affects the codes."""
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    return (_center(name) + _spread(name, shape) * noise).astype(np.float32)


def _center(name: str) -> float:
    if name.endswith(("_usage", ".initialized")) or ("norm" in name and name.endswith(".weight")):
        return 1.0
    return 0.5 if name.endswith((".scale", ".gamma")) else 0.0


def _spread(name: str, shape: Shape) -> float:
    if name.endswith(".initialized"):
        return 0.0
    if len(shape) == 1:
        return 0.1
    if name.endswith(("embedding.weight", "embed_sum", "embedding_sum")) or ".codec_embedding." in name:
        return 1.0
    fan_in = shape[0] if name.startswith("decoder.decoder") and ".block.1." in name else int(np.prod(shape[1:]))
    return _gain(name) / float(np.sqrt(fan_in))


def _gain(name: str) -> float:
    if name.startswith("decoder."):
        return _decoder_gain(name)
    return 1.6 if name.startswith("talker.") else 1.3


def _decoder_gain(name: str) -> float:
    """Return a scale that keeps the audio below full scale, since the decoder squares its input in every stage."""
    if ".conv2." in name:
        return 0.3
    return 0.1 if name.startswith("decoder.decoder.6.") else 0.9


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    print(make_checkpoint(Path(sys.argv[1])))
