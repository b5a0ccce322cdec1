"""What a checkpoint says of itself, and the error that names what it should not say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afterwords.backends.qwen3.codec_config import check_codes, read_codec_config
from afterwords.backends.qwen3.config import LANGUAGE_NAMES, ModelConfig, Sampling, read_config
from afterwords.errors import ModelFileError
from afterwords.text import LANGS

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def change(checkpoint: Path, tmp_path: Path) -> Callable[..., ModelConfig]:
    """Read the configuration after a change of one of its files."""

    def read(change: Change, file: str = "config.json") -> ModelConfig:
        folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        content = json.loads((folder / file).read_text("utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), "utf-8")
        return read_config(folder)

    return read


def test_everything_is_read_from_the_files(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    assert config.talker.stack.n_layers == 2
    assert config.talker.stack.rope_theta == 1e6
    assert config.predictor.vocab == 64
    assert config.talker.languages == {"chinese": 71, "english": 66, "german": 69}
    assert config.sampling == Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05)
    assert config.max_frames == 8192


def test_published_speaker_encoder_that_states_only_its_width_is_the_references(change: Callable[..., Any]) -> None:
    config = change(lambda c: c.update(speaker_encoder_config={"enc_dim": 32, "sample_rate": 24000}))
    assert config.speaker.channels == (512, 512, 512, 512, 1536)
    assert config.speaker.res2net_scale == 8


def test_dialects_are_no_languages(change: Callable[..., Any]) -> None:
    config = change(lambda c: c["talker_config"]["codec_language_id"].update(beijing_dialect=70))
    assert "beijing_dialect" not in config.talker.languages


def test_checkpoint_that_draws_nothing_is_greedy(change: Callable[..., Any]) -> None:
    config = change(lambda c: c.update(do_sample=False, subtalker_dosample=False), "generation_config.json")
    assert (config.sampling.temperature, config.sampling.predictor_temperature) == (0, 0)


def test_a_codec_that_can_t_decode_what_the_talker_says_is_named(checkpoint: Path) -> None:
    config, codec = read_config(checkpoint), read_codec_config(checkpoint / "speech_tokenizer")
    check_codes(config, codec, checkpoint)
    for odd in (
        replace(codec, decoder=replace(codec.decoder, codebook_size=63)),
        replace(codec, n_codebooks=15),
    ):
        with pytest.raises(ModelFileError, match="which its talker does not speak"):
            check_codes(config, odd, checkpoint)


def test_every_language_of_the_project_has_a_name() -> None:
    assert sorted(LANGUAGE_NAMES) == sorted(LANGS)


@pytest.mark.parametrize(
    ("change_it", "why"),
    [
        (lambda c: c.update(model_type="qwen3"), "model_type is 'qwen3', and only 'qwen3_tts' is known"),
        (lambda c: c.update(tts_model_type="custom_voice"), "tts_model_type is 'custom_voice'"),
        (lambda c: c.update(tokenizer_type="qwen3_tts_tokenizer_25hz"), "tokenizer_type is"),
        (lambda c: c.pop("talker_config"), "talker_config is missing"),
        (lambda c: c.update(talker_config=[]), "talker_config is not an object"),
        (lambda c: c.pop("tts_pad_token_id"), "tts_pad_token_id is missing"),
        (lambda c: c.update(tts_pad_token_id=320), "tts_pad_token_id is 320, beyond a vocabulary of 320"),
        (lambda c: c["talker_config"].pop("hidden_size"), r"talker_config\.hidden_size is missing"),
        (lambda c: c["talker_config"].update(hidden_size="32"), "hidden_size is '32', not a whole number"),
        (lambda c: c["talker_config"].update(hidden_size=True), "hidden_size is True, not a whole number"),
        (lambda c: c["talker_config"].update(num_hidden_layers=0), "num_hidden_layers is 0, not a whole number of 1"),
        (lambda c: c["talker_config"].update(num_key_value_heads=3), "is 3, which does not divide 4 heads"),
        (lambda c: c["talker_config"].update(head_dim=15), "head_dim is 15, which has no halves"),
        (lambda c: c["talker_config"].update(hidden_act="gelu"), "hidden_act is 'gelu', and only 'silu'"),
        (lambda c: c["talker_config"].update(attention_bias=True), "attention_bias is True"),
        (lambda c: c["talker_config"].update(use_sliding_window=True), "use_sliding_window is True"),
        (lambda c: c["talker_config"]["rope_scaling"].update(rope_type="yarn"), r"rope_scaling\.rope_type is 'yarn'"),
        (lambda c: c["talker_config"].update(rope_theta=0), "rope_theta is 0, not a number above 0"),
        (lambda c: c["talker_config"].update(vocab_size=1024), "vocab_size is 1024, not a whole number of 1025"),
        (lambda c: c["talker_config"].update(codec_bos_id=9999), "codec_bos_id is 9999, beyond a vocabulary of 1088"),
        (lambda c: c["talker_config"].update(codec_language_id={"english": "x"}), "not names with an id each"),
        (lambda c: c["talker_config"].update(codec_language_id={"english": 2000}), "english the id 2000"),
        (
            lambda c: c["talker_config"]["code_predictor_config"].update(num_code_groups=8),
            r"code_predictor_config\.num_code_groups is 8",
        ),
        (
            lambda c: c["talker_config"]["code_predictor_config"].update(vocab_size=65),
            "vocab_size is 65, more codes than",
        ),
        (lambda c: c["speaker_encoder_config"].update(enc_dim=64), r"enc_dim is 64, and only 32"),
        (lambda c: c["speaker_encoder_config"].update(enc_channels=[16, 48]), "does not fit enc_kernel_sizes"),
        (lambda c: c["speaker_encoder_config"].update(enc_channels=16), "is 16, not a list of whole numbers"),
    ],
)
def test_odd_field_is_named(change: Callable[..., Any], change_it: Change, why: str) -> None:
    with pytest.raises(ModelFileError, match=rf"config\.json can't be used: .*{why}"):
        change(change_it)


@pytest.mark.parametrize(
    ("change_it", "why"),
    [
        (lambda c: c.update(temperature="hot"), "temperature is 'hot', not a number above 0"),
        (lambda c: c.update(do_sample=1), "do_sample is 1, neither true nor false"),
        (lambda c: c.update(top_k=500), "top_k must lie between 1 and 128"),
    ],
)
def test_odd_field_of_the_generation_is_named(change: Callable[..., Any], change_it: Change, why: str) -> None:
    with pytest.raises(ModelFileError, match=rf"generation_config\.json can't be used: .*{why}"):
        change(change_it, "generation_config.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is missing"), ("{", "is not JSON"), ("[]", "holds no JSON object"), ("\xff", "not JSON")],
)
def test_damaged_file_is_named(checkpoint: Path, tmp_path: Path, content: str | None, why: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    path = folder / "generation_config.json"
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelFileError, match=rf"generation_config\.json .*{why}"):
        read_config(folder)
