"""The embedded demo: two drawn worlds and a small detector that knows the first of them."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("ssdlite320_street.safetensors")
"""The shipped detector: torchvision's SSDLite320, trained from nothing on the street world (half precision)."""
RECORD = Path(__file__).with_name("ssdlite320_street.json")
"""Its record: SHA-256, classes, recipe, figures."""

__all__ = ["RECORD", "WEIGHTS"]
