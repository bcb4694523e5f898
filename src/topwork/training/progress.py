"""Progress of training on the screen: a rich bar on a terminal, one line an epoch elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topwork.events import ProgressEvent, emit


class RunProgress:
    """Progress of a run; prints nothing where `shown` is False (every process but the first)."""

    def __init__(self, total: int, done: int = 0, shown: bool = True) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.shown, self.images, self.since = shown, 0, time.perf_counter()
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]fine-tuning"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[terms]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, terms="")
            self._bar.start()

    def step(self, images: int, terms: Mapping[str, float]) -> None:
        """One step more."""
        self.images += images
        if self._bar is not None:
            listed = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self._bar.update(self._task, advance=1, terms=f"{self.rate():.1f} images/s  {listed}")

    def rate(self) -> float:
        """Images a second since the last epoch's line."""
        return self.images / max(time.perf_counter() - self.since, 1e-9)

    def epoch(self, number: int, of: int, row: Mapping[str, Any]) -> None:
        """One epoch more: its figures in a line."""
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in row.items()
            if name != "epoch" and isinstance(value, float)
        )
        self.message(f"epoch {number}/{of}  {self.rate():.1f} images/s  {figures}")
        self.images, self.since = 0, time.perf_counter()
        if self.shown:
            emit(ProgressEvent(done=number, total=of, unit="epoch", text=figures))

    def message(self, text: str) -> None:
        """Print a line of text."""
        if self.shown:
            self.console.print(text, markup=False)
            self.console.file.flush()

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
