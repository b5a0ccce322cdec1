"""Qwen3-TTS in torch: the network, continuous batching, CUDA graphs and Triton kernels.

The modelling is plain torch, with weights from safetensors by name. Only here is torch imported.
"""
