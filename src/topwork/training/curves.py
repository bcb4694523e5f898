"""Training curves by DVCLive, written while training runs; a resumed run writes its whole history
again.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

History = list[dict[str, Any]]


class Curves:
    """DVCLive in a folder: metrics.json and plots/metrics/**.tsv, one row an epoch.

    Args:
        folder: where; what was there is removed. None writes nothing.
        history: rows of a run that is resumed.
    """

    def __init__(self, folder: Path | None, history: Sequence[dict[str, Any]] = ()) -> None:
        self._live: Any = None
        if folder is None:
            return
        os.environ.setdefault("DVC_STUDIO_OFFLINE", "true")
        os.environ.setdefault("DVCLIVE_LOGLEVEL", "ERROR")
        from dvclive.live import Live  # heavy, and only here

        folder.mkdir(parents=True, exist_ok=True)

        class Plain(Live):
            """DVC runs this stage and tracks its outputs; Live needn't look for a repository (and
            fails in one without commits).
            """

            def _init_dvc(self) -> None:
                pass

        self._live = Plain(dir=str(folder), save_dvc_exp=False, dvcyaml=False, report=None)
        for row in history:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """One epoch: `epoch` and metrics by name (`train/loss`, `val/map`)."""
        if self._live is None:
            return
        self._live.step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._live.log_metric(name, float(value), timestamp=False)
        self._live.make_summary()

    def end(self) -> None:
        """Write the last summary."""
        if self._live is not None:
            self._live.end()
