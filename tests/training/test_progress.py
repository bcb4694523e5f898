"""What a training prints where there is no terminal."""

import re

import pytest

from topwork.training import progress


def test_a_line_an_epoch_and_in_long_ones_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that goes 10 s a look; resumed at step 10 of 40, so that the pace is this process's
    own.
    """
    now = [0.0]

    def clock() -> float:
        now[0] += 10
        return now[0]

    monkeypatch.setattr(progress.time, "perf_counter", clock)
    shown = progress.RunProgress(40, 10)
    for _ in range(12):
        shown.step(8, {"loss": 1.0})
    shown.epoch(3, 5, {"epoch": 3, "train/loss": 1.5})
    shown.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("epoch 3/5  ")
    assert lines[-1].endswith("min left  train/loss 1.5")
    assert len(lines) > 1, "a line within the epoch"
    assert re.match(r"step 1[67]/40  ", lines[0])
    assert "images/s  " in lines[0]
