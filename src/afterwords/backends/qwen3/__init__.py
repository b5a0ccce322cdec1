"""Qwen3-TTS in plain torch: the talker, its code predictor, the speech codec and the speaker encoder.

Written for the 12 Hz Base checkpoints, whose weights come from safetensors by name. Only here is torch imported.
"""
