"""The usual way to run Qwen3-TTS, to compare with: one module for each matrix, a cache that grows, codes read back.

It stands for the reference package, which does not support a current transformers, in what costs time: the
number of small operations, and the host that waits for the device after each code. All rows are of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import ModelConfig, StackConfig
from afterwords.backends.qwen3.torch.weights import Weights

Cache = list[tuple[Tensor, Tensor]]


class PlainStack:
    """Decoder layers in plain torch."""

    def __init__(self, weights: Weights, prefix: str, config: StackConfig) -> None:
        self.config = config
        self._layers = [_layer(weights, f"{prefix}.layers.{number}", config) for number in range(config.n_layers)]
        self._norm = weights.take(f"{prefix}.norm.weight", (config.hidden,))

    def __call__(self, x: Tensor, cache: Cache) -> Tensor:
        """Run the next positions, of shape (rows, n, hidden), after a cache."""
        begin = cache[0][0].shape[2] if cache else 0
        request = _rotation(self.config, begin, x)
        for number, layer in enumerate(self._layers):
            x = x + self._attend(layer, number, self._normed(x, layer["input_layernorm"]), request, cache)
            y = self._normed(x, layer["post_attention_layernorm"])
            gate = functional.silu(functional.linear(y, layer["mlp.gate_proj"]))
            x = x + functional.linear(gate * functional.linear(y, layer["mlp.up_proj"]), layer["mlp.down_proj"])
        return self._normed(x, self._norm)

    def _attend(
        self, layer: dict[str, Tensor], number: int, x: Tensor, request: tuple[Tensor, Tensor], cache: Cache
    ) -> Tensor:
        n_rows, n, _ = x.shape
        heads = [
            functional.linear(x, layer[f"self_attn.{part}_proj"]).view(n_rows, n, -1, self.config.head_dim)
            for part in "qkv"
        ]
        query, key = (
            _turned(self._normed(head, layer[f"self_attn.{part}_norm"]).transpose(1, 2), request)
            for head, part in zip(heads, "qk", strict=False)
        )
        value = heads[2].transpose(1, 2)
        if number < len(cache):
            key, value = torch.cat([cache[number][0], key], 2), torch.cat([cache[number][1], value], 2)
            cache[number] = (key, value)
        else:
            cache.append((key, value))
        repeats = self.config.n_heads // self.config.n_kv_heads
        output = functional.scaled_dot_product_attention(
            query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), is_causal=n > 1
        )
        return functional.linear(output.transpose(1, 2).reshape(n_rows, n, -1), layer["self_attn.o_proj"])

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return weight * wide.to(x.dtype)


class PlainTalker:
    """Decodes the same prompt in every row."""

    @torch.inference_mode()
    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self._config, talker, codes = config, config.talker, config.talker.predictor.vocab
        wide, narrow = talker.stack.hidden, config.talker.predictor.stack.hidden
        self._talker = PlainStack(weights, "talker.model", talker.stack)
        self._head = weights.take("talker.codec_head.weight", (talker.vocab, wide))
        at = "talker.code_predictor"
        self._predictor = PlainStack(weights, f"{at}.model", config.talker.predictor.stack)
        others = range(talker.n_code_groups - 1)
        self._heads = [weights.take(f"{at}.lm_head.{group}.weight", (codes, narrow)) for group in others]
        self._tables = [
            weights.take("talker.model.codec_embedding.weight", (talker.vocab, wide)),
            *(weights.take(f"{at}.model.codec_embedding.{group}.weight", (codes, wide)) for group in others),
        ]
        self._narrowing = (
            weights.take(f"{at}.small_to_mtp_projection.weight", (narrow, wide)) if narrow != wide else None
        )

    @torch.inference_mode()
    def hear(self, columns: Tensor, n_rows: int) -> tuple[Tensor, Cache]:
        """Prefill a prompt of shape (n, hidden); return the last hidden state and the cache."""
        cache: Cache = []
        return self._talker(columns.expand(n_rows, -1, -1), cache)[:, -1:], cache

    @torch.inference_mode()
    def frame(self, hidden: Tensor, cache: Cache) -> Tensor:
        """Decode one frame; return the next hidden state."""
        code = self._drawn(functional.linear(hidden[:, -1], self._head)[:, : self._config.talker.predictor.vocab])
        output = [functional.embedding(code, self._tables[0])]
        x, context = torch.cat([hidden, output[0]], 1), Cache()
        for group, head in enumerate(self._heads, 1):
            made = self._predictor(self._narrow(x), context)
            code = self._drawn(functional.linear(made[:, -1], head))
            x = functional.embedding(code, self._tables[group])
            output.append(x)
        return self._talker(torch.stack(output).sum(0), cache)

    def _drawn(self, logits: Tensor) -> Tensor:
        """Draw a code per row, shape (rows, 1), and read back whether it is the end, as generation loops do."""
        sampling = self._config.sampling
        logits = logits / sampling.temperature
        least = logits.topk(min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        code = torch.multinomial(logits.masked_fill(logits < least, -torch.inf).float().softmax(-1), 1)
        if (code < 0).all().item():
            raise AssertionError("a code below 0")
        return code

    def _narrow(self, x: Tensor) -> Tensor:
        return x if self._narrowing is None else functional.linear(x, self._narrowing)


def _layer(weights: Weights, at: str, config: StackConfig) -> dict[str, Tensor]:
    hidden, ffn = config.hidden, config.ffn
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    return {name: weights.take(f"{at}.{name}.weight", shape) for name, shape in shapes.items()}


def _rotation(config: StackConfig, begin: int, x: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, config.head_dim, 2, device=x.device).float() / config.head_dim
    positions = torch.arange(begin, begin + x.shape[1], device=x.device).float()
    angle = (positions[:, None] / config.rope_theta**steps).repeat(1, 2)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def _turned(x: Tensor, request: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * request[0] + torch.cat([-right, left], -1) * request[1]
