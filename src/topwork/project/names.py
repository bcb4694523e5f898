"""Names of splits and models, as tables, files and pages have them."""

SPLITS = ("train", "val", "test", "source", "replay")
HELD_OUT = ("test", "source")
"""Splits that detectors are measured on: the custom test set, and images of the pretrained
detector's own domain.
"""
MODELS = ("pretrained", "grafted", "finetuned")
MODEL_TITLES = dict(zip(MODELS, ("pretrained", "grafted", "fine-tuned"), strict=True))
"""Models as texts for readers call them."""
