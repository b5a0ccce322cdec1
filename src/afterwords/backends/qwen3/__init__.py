"""Qwen3-TTS for the 12 Hz Base checkpoints: what knows no tensors, for the engines in `torch` and `mlx`."""

from typing import Final

ENCODER_VERSION: Final = "1"
"""Goes up whenever a change in how references are encoded makes older prompts worth making again."""
