"""Make a checkpoint of Pocket TTS with random weights: 0.4 MB, or as large as the published one.

Both load through the package's own loader, from the files that `afterwords models pull pocket` downloads and a
`config.yaml` with their sizes. `python -m scripts.make_pocket_tiny FOLDER [--full]` makes one to look at, or to time:
put FOLDER where `afterwords models path pocket` would be, such as AFTERWORDS_MODELS/pocket.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from pocket_tts import TTSModel
from pocket_tts.models.mimi import build_mimi
from pocket_tts.models.tts_model import stamp_state_names
from pocket_tts.modules.stateful_module import init_states
from pocket_tts.utils.config import CONFIGS_DIR, Config
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import Unigram
from tokenizers.normalizers import Prepend
from tokenizers.pre_tokenizers import Metaspace

from afterwords.backends.pocket.model import CONFIG
from afterwords.weights.catalog import CHECKPOINTS

THRESHOLD: Final = -4.0
"""The logit above which a sentence ends."""
SYLLABLES: Final = (
    "th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de se le sa si ar ve ra "
    "ld ur the and ing ion ent her for tha ere ter est all his ver wit ith our out you are was not but one had ght own"
)
WORDS: Final = "the and of to in is it was for on that with you are this at by from have not they what when over"


def make_checkpoint(folder: Path, *, is_full: bool = False, ends: bool = True) -> Path:
    """Write a complete checkpoint and return its folder.

    Args:
        folder: Made if need be; files in it are replaced.
        is_full: As large as the published one, 440 MB. Otherwise the same parts with few channels.
        ends: Sentences end at some frame; otherwise each reaches the greatest length of its text.
    """
    weights, tokenizer = (folder / source.required[0] for source in CHECKPOINTS["pocket"].sources)
    for path in (weights, tokenizer):
        path.parent.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((CONFIGS_DIR / CONFIG).read_text("utf-8"))
    config.pop("weights_path_without_voice_cloning")
    if not is_full:
        _shrink(config)
    table = config["flow_lm"]["lookup_table"]
    table["tokenizer_path"] = str(tokenizer)
    table["n_bins"] = _write_tokenizer(tokenizer, size=table["n_bins"] if is_full else 0)
    weights.with_name("config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    tts = _random_model(Config(**config), ends=ends)
    save_file({name: tensor.contiguous() for name, tensor in tts.state_dict().items()}, weights)
    return folder


def _shrink(config: dict[str, Any]) -> None:
    """Make all layers narrow. The rates stay: 120 samples and 16 of these to a frame."""
    flow, mimi = config["flow_lm"], config["mimi"]
    flow["transformer"].update(d_model=32, num_heads=2, num_layers=2, hidden_scale=2)
    flow["flow"].update(dim=32, depth=1)
    flow["lookup_table"]["dim"] = 32
    mimi["seanet"].update(dimension=16, n_filters=2)
    mimi["transformer"].update(d_model=16, num_heads=2, num_layers=1, dim_feedforward=32, input_dimension=16)
    mimi["transformer"]["output_dimensions"] = [16]
    mimi["quantizer"].update(dimension=8, output_dimension=16)
    mimi.update(inner_dim=8, outer_dim=16)  # the outer one equals the codec's, since upsampling is per channel


def _write_tokenizer(path: Path, *, size: int) -> int:
    """Write a vocabulary with byte fallback like the published one, filled up to `size`; return its size."""
    letters = [*string.ascii_letters, *string.digits, *".,!?;:'\"()-…"]
    pieces = [(name, 0.0) for name in ("<unk>", "<s>", "</s>", "<pad>")]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [("▁", -2.0), *((letter, -6.0) for letter in letters)]  # "▁" and "." apart: the package splits there
    pieces += [(syllable, -4.0) for syllable in dict.fromkeys(SYLLABLES.split())]
    pieces += [
        ("▁" + start, -5.0) for start in dict.fromkeys([*WORDS.split(), *string.ascii_letters, *SYLLABLES.split()])
    ]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = Prepend("▁")
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.decoder = Decoders([MetaspaceDecoder(prepend_scheme="always"), ByteFallback(), Fuse()])
    tokenizer.add_tokens([f"<unused{n}>" for n in range(size - tokenizer.get_vocab_size())])
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


@torch.no_grad()
def _random_model(config: Config, *, ends: bool) -> TTSModel:
    torch.manual_seed(0)
    tts = TTSModel._from_pydantic_config(config, 0.3, 1, None, THRESHOLD, None)
    width = config.mimi.inner_dim or config.mimi.seanet.dimension
    tts.flow_lm.speaker_proj_weight = torch.nn.Parameter(torch.empty(config.flow_lm.transformer.d_model, width))
    tts.mimi = build_mimi(config.mimi).eval()
    stamp_state_names(tts)
    # Wider than torch's own and without biases: otherwise the sound depends on neither voice nor text.
    for name, tensor in tts.named_parameters():
        if tensor.ndim > 1:
            fan_in = 2 * tensor.shape[1] if "convtr" in name else tensor[0].numel()
            tensor.normal_(0, (1.2 if "mimi" in name else 1.5) / fan_in**0.5)
        elif name.endswith("bias"):
            tensor.zero_()
        elif "layer_scale" in name:  # published as 0.01 before training, which would silence the codec's transformers
            tensor.fill_(0.3)
    tts.flow_lm.conditioner.embed.weight.normal_()
    tts.flow_lm.bos_emb.normal_()
    tts.flow_lm.out_eos.weight.mul_(2)  # in the small one, every third frame or so is above the threshold
    tts.flow_lm.out_eos.bias.fill_(THRESHOLD if ends else -1e4)
    latents = torch.randn(1, 13, tts.flow_lm.ldim)
    sound = tts.mimi.decode_from_latent(latents, init_states(tts.mimi, 1, 13 * 16))
    tts.mimi.decoder.model[-1].conv.weight.mul_(0.05 / sound.square().mean().sqrt())
    return tts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    print(make_checkpoint(args.folder, is_full=args.full))
