"""Out of the stage `gate`."""

from pathlib import Path

PASSED = Path("out/gate/verdict.json")
