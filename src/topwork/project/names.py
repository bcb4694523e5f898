"""Names of splits and models, as tables, files and pages have them."""

CUSTOM_SPLITS = ("train", "val", "test")
"""Splits of the custom data set."""
SPLITS = (*CUSTOM_SPLITS, "source", "replay")
"""These, and the splits of the pretrained detector's own domain."""
HELD_OUT = ("test", "source")
"""Splits that detectors are measured on: the custom test set, and images of the pretrained
detector's own domain.
"""
MODELS = ("pretrained", "grafted", "finetuned")
MODEL_TITLES = dict(zip(MODELS, ("pretrained", "grafted", "fine-tuned"), strict=True))
"""Models as texts for readers call them."""
