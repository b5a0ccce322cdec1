"""Qwen3-TTS: the talker, its code predictor, the speech codec and the speaker encoder, for the 12 Hz Base checkpoints.

The modelling is plain torch, with weights from safetensors by name. What knows no tensors (config, tokenizer, layout,
turns, reading, reference_prompt) serves the MLX engine as well.
"""

from typing import Final

ENCODER_VERSION: Final = "1"
"""Goes up whenever a change in how references are encoded makes older prompts worth making again."""
