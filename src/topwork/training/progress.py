"""Progress of training on the screen: a rich bar on a terminal, elsewhere a line an epoch, and in
long epochs a line now and then.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topwork.events import ProgressEvent, emit

LINE_S = 60.0
"""Seconds after which a long epoch gets a line of its own where there is no terminal."""


class RunProgress:
    """Progress of a run; prints nothing where `shown` is False (every process but the first)."""

    def __init__(self, total: int, done: int = 0, shown: bool = True) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.shown, self.images, self.since = shown, 0, time.perf_counter()
        self.total, self.done, self.before = total, done, done
        self.begin = self.spoken = self.since
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
        self.done += 1
        if self._bar is not None:
            listed = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self._bar.update(self._task, advance=1, terms=f"{self.rate():.1f} images/s  {listed}")
        elif self.shown and time.perf_counter() - self.spoken > LINE_S:
            self.message(
                f"step {self.done}/{self.total}  {self.rate():.1f} images/s  {self.left()}"
            )

    def rate(self) -> float:
        """Images a second since the last epoch's line."""
        return self.images / max(time.perf_counter() - self.since, 1e-9)

    def left(self) -> str:
        """How long the rest takes, at the pace since this process began."""
        pace = (time.perf_counter() - self.begin) / max(self.done - self.before, 1)
        minutes = pace * (self.total - self.done) / 60
        return f"{minutes:.0f} min left" if minutes >= 1 else "under a minute left"

    def epoch(self, number: int, of: int, row: Mapping[str, Any]) -> None:
        """One epoch more: its figures in a line."""
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in row.items()
            if name != "epoch" and isinstance(value, float)
        )
        self.message(f"epoch {number}/{of}  {self.rate():.1f} images/s  {self.left()}  {figures}")
        self.images, self.since = 0, time.perf_counter()
        if self.shown:
            emit(ProgressEvent(done=number, total=of, unit="epoch", text=figures))

    def message(self, text: str) -> None:
        """Print a line of text."""
        self.spoken = time.perf_counter()
        if self.shown:
            self.console.print(text, markup=False)
            self.console.file.flush()

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
