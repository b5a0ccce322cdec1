"""Reading the configuration of a checkpoint, and the errors that name an unsupported field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afterwords.backends.qwen3.codec_config import check_codes, read_codec_config
from afterwords.backends.qwen3.config import LANGUAGE_NAMES, ModelConfig, Sampling, read_config
from afterwords.errors import ModelError
from afterwords.text import LANGS

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def change(checkpoint: Path, tmp_path: Path) -> Callable[..., ModelConfig]:
    """Return a function that reads the configuration after a change of one of its files."""

    def read(change: Change, file: str = "config.json") -> ModelConfig:
        folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        content = json.loads((folder / file).read_text("utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), "utf-8")
        return read_config(folder)

    return read


def test_config_is_read_from_both_files(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    assert config.talker.stack.n_layers == 2
    assert config.talker.stack.rope_theta == 1e6
    assert config.talker.predictor.vocab == 64
    assert config.talker.languages == {"chinese": 71, "english": 66, "german": 69}
    assert config.sampling == Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05)
    assert config.max_frames == 8192


def test_speaker_encoder_defaults_are_the_references(change: Callable[..., Any]) -> None:
    config = change(lambda c: c.update(speaker_encoder_config={"enc_dim": 32, "sample_rate": 24000}))
    assert config.speaker.channels == (512, 512, 512, 512, 1536)
    assert config.speaker.res2net_scale == 8


def test_dialects_are_not_languages(change: Callable[..., Any]) -> None:
    config = change(lambda c: c["talker_config"]["codec_language_id"].update(beijing_dialect=70))
    assert "beijing_dialect" not in config.talker.languages


def test_do_sample_false_is_greedy(change: Callable[..., Any]) -> None:
    config = change(lambda c: c.update(do_sample=False, subtalker_dosample=False), "generation_config.json")
    assert (config.sampling.temperature, config.sampling.predictor_temperature) == (0, 0)


def test_codec_that_does_not_match_its_talker_is_refused(checkpoint: Path) -> None:
    config, codec = read_config(checkpoint), read_codec_config(checkpoint / "speech_tokenizer")
    check_codes(config, codec, checkpoint)
    for odd in (
        codec.model_copy(update={"decoder": codec.decoder.model_copy(update={"codebook_size": 63})}),
        codec.model_copy(update={"n_codebooks": 15}),
    ):
        with pytest.raises(ModelError, match="which do not match its talker"):
            check_codes(config, odd, checkpoint)


def test_unsupported_codec_is_named(checkpoint: Path, tmp_path: Path) -> None:
    original = (checkpoint / "speech_tokenizer" / "config.json").read_text("utf-8")
    changes: dict[str, Change] = {
        "decode_upsample_rate is not": lambda c: c.update(decode_upsample_rate=1),
        "encode_downsample_rate is not": lambda c: c.update(encode_downsample_rate=1),
        "encoder_valid_num_quantizers is not 16": lambda c: c.update(encoder_valid_num_quantizers=8),
        "num_quantizers is 15, fewer": lambda c: c["encoder_config"].update(num_quantizers=15),
        "encoder_config.pad_mode: .*'reflect'": lambda c: c["encoder_config"].update(pad_mode="reflect"),
        "vector_quantization_hidden_dimension is not": lambda c: c["encoder_config"].update(
            vector_quantization_hidden_dimension=7
        ),
        "decoder_config.hidden_act: .*'relu'": lambda c: c["decoder_config"].update(hidden_act="relu"),
    }
    for why, change in changes.items():
        content = json.loads(original)
        change(content)
        (tmp_path / "config.json").write_text(json.dumps(content), "utf-8")
        with pytest.raises(ModelError, match=f"can't be used: .*{why}"):
            read_codec_config(tmp_path)


def test_every_language_has_a_name() -> None:
    assert sorted(LANGUAGE_NAMES) == sorted(LANGS)


ODD_CONFIGS: dict[str, Change] = {
    "model_type: Input should be 'qwen3_tts', not 'qwen3'": lambda c: c.update(model_type="qwen3"),
    "tts_model_type: .*'custom_voice'": lambda c: c.update(tts_model_type="custom_voice"),
    "tokenizer_type: .*25hz": lambda c: c.update(tokenizer_type="qwen3_tts_tokenizer_25hz"),
    "talker_config: Field required": lambda c: c.pop("talker_config"),
    "talker_config: .*object": lambda c: c.update(talker_config=[]),
    "tts_pad_token_id: Field required": lambda c: c.pop("tts_pad_token_id"),
    "tts_pad_token_id is 320, beyond a vocabulary of 320": lambda c: c.update(tts_pad_token_id=320),
    "talker_config.hidden_size: Field required": lambda c: c["talker_config"].pop("hidden_size"),
    "talker_config.hidden_size: .* not '32'": lambda c: c["talker_config"].update(hidden_size="32"),
    "hidden_size: .* not True": lambda c: c["talker_config"].update(hidden_size=True),
    "num_hidden_layers: .* not 0": lambda c: c["talker_config"].update(num_hidden_layers=0),
    "num_key_value_heads is 3, which does not divide": lambda c: c["talker_config"].update(num_key_value_heads=3),
    "head_dim is 15, which is odd": lambda c: c["talker_config"].update(head_dim=15),
    "hidden_act: .*'silu', not 'gelu'": lambda c: c["talker_config"].update(hidden_act="gelu"),
    "attention_bias: .* not True": lambda c: c["talker_config"].update(attention_bias=True),
    "use_sliding_window: .* not True": lambda c: c["talker_config"].update(use_sliding_window=True),
    "rope_scaling.rope_type: .*'yarn'": lambda c: c["talker_config"]["rope_scaling"].update(rope_type="yarn"),
    "rope_theta: .* not 0": lambda c: c["talker_config"].update(rope_theta=0),
    "vocab_size: .*greater than 1024": lambda c: c["talker_config"].update(vocab_size=1024),
    "codec_bos_id is 9999, beyond a vocabulary of 1088": lambda c: c["talker_config"].update(codec_bos_id=9999),
    "codec_language_id.english: .*'x'": lambda c: c["talker_config"].update(codec_language_id={"english": "x"}),
    "english the id 2000": lambda c: c["talker_config"].update(codec_language_id={"english": 2000}),
    "num_code_groups is not 16": lambda c: c["talker_config"]["code_predictor_config"].update(num_code_groups=8),
    "vocab_size is larger than 64": lambda c: c["talker_config"]["code_predictor_config"].update(vocab_size=65),
    "enc_dim is not 32": lambda c: c["speaker_encoder_config"].update(enc_dim=64),
    "does not match enc_kernel_sizes": lambda c: c["speaker_encoder_config"].update(enc_channels=[16, 48]),
    "enc_channels: .*array, not 16": lambda c: c["speaker_encoder_config"].update(enc_channels=16),
    "enc_channels.0: .*integer": lambda c: c["speaker_encoder_config"].update(enc_channels=["16", 48, 48]),
}
ODD_GENERATION: dict[str, Change] = {
    "temperature: .* not 'hot'": lambda c: c.update(temperature="hot"),
    "do_sample: .* not 1": lambda c: c.update(do_sample=1),
    "top_k must lie between 1 and 128": lambda c: c.update(top_k=500),
}


@pytest.mark.parametrize(
    ("file", "changes"), [("config.json", ODD_CONFIGS), ("generation_config.json", ODD_GENERATION)]
)
def test_unsupported_value_names_its_field(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict[str, Change]
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    original = (folder / file).read_text("utf-8")
    for why, change in changes.items():
        content = json.loads(original)
        change(content)
        (folder / file).write_text(json.dumps(content), "utf-8")
        with pytest.raises(ModelError, match=rf"{file} can't be used: .*{why}"):
            read_config(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is missing"), ("{", "Invalid JSON"), ("[]", "should be an object"), ("\xff", "Invalid JSON")],
)
def test_damaged_file_is_named(checkpoint: Path, tmp_path: Path, content: str | None, why: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    path = folder / "generation_config.json"
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=rf"generation_config\.json .*{why}"):
        read_config(folder)
