"""Progress over images: a bar with the time that is left on a terminal, now and then a line
elsewhere.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_S = 60.0
"""Seconds between two lines where there is no terminal."""


class ImageProgress:
    """Progress over the images of one split.

    Args:
        title: what is done to which images.
        total: how many images.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.begin = self.spoken = time.perf_counter()
        console = Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(title),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        else:
            print(f"{title}: {total} images", flush=True)

    def update(self, done: int) -> None:
        """So many images are done."""
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif now - self.spoken > LINE_S and done < self.total:
            self.spoken = now
            left = (now - self.begin) / done * (self.total - done)
            print(f"{self.title}: {done}/{self.total} images, {left / 60:.0f} min left", flush=True)

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
