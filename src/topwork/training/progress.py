"""Telling how training goes: a rich bar on a terminal, one line an epoch elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topwork.project.events import ProgressEvent, emit


class Watch:
    """Progress of a run; silent where `shown` is False (every process but the first)."""

    def __init__(self, total: int, done: int = 0, shown: bool = True) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.shown, self.images, self.since = shown, 0, time.perf_counter()
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]fine-tuning"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, told="")
            self._bar.start()

    def step(self, images: int, terms: Mapping[str, float]) -> None:
        """One step more."""
        self.images += images
        if self._bar is not None:
            told = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self._bar.update(self._task, advance=1, told=f"{self.rate():.1f} images/s  {told}")

    def rate(self) -> float:
        """Images a second since the last epoch's line."""
        return self.images / max(time.perf_counter() - self.since, 1e-9)

    def epoch(self, number: int, of: int, row: Mapping[str, Any]) -> None:
        """One epoch more: its figures in a line."""
        told = "  ".join(
            f"{name} {value:.4g}"
            for name, value in row.items()
            if name != "epoch" and isinstance(value, float)
        )
        self.say(f"epoch {number}/{of}  {self.rate():.1f} images/s  {told}")
        self.images, self.since = 0, time.perf_counter()
        if self.shown:
            event = ProgressEvent(done=number, total=of, unit="epoch", text=told)
            emit(event)

    def say(self, text: str) -> None:
        """A line of text."""
        if self.shown:
            self.console.print(text, markup=False)
            self.console.file.flush()

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
