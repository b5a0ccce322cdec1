"""Qwen3-TTS on Apple Silicon: the network is mlx-audio's, prompts, drawing, batches and the codec's state are ours.

Only here is mlx imported. All of it runs on one thread, since Metal is not safe under concurrency.
"""
