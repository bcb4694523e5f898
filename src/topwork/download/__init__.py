"""Pretrained weights from anywhere: sources, HTTP transport, the shared cache, the lock of known
hashes.
"""
