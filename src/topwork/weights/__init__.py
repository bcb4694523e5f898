"""Weights as files: the safetensors format that topwork writes, category sets, raw checkpoints, and
whether tensors fit.
"""
