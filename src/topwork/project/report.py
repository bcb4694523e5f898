"""Out of the stage `report`."""

from pathlib import Path

REPORT = Path("out/report/report.html")
