"""What export, predict and compare refuse: one paragraph that names the fault, nothing written."""

from pathlib import Path

import pytest

from topwork.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "a.jpg", "--score", "nan"], "predict: --score nan, expected 0 to 1."),
        (["predict", "a.jpg", "--score", "7"], "predict: --score 7, expected 0 to 1."),
        (["export", "--images", "gone.jpg"], "export: gone.jpg: no such file or folder."),
        (["export", "--images", "gone", "params.yaml"], "export: gone: no such file or folder."),
        (
            ["export", "--images", "params.yaml"],
            "export: no image in params.yaml; images end with .avif, .bmp",
        ),
        (
            ["compare", "workspace", "workspace", "--pictures", "-1"],
            "compare: --pictures -1, expected 0 or more.",
        ),
        (["compare", "workspace"], "compare: one revision given, expected two or more"),
    ],
    ids=[
        "score nan",
        "score 7",
        "image gone",
        "folder gone",
        "no image",
        "pictures -1",
        "one revision",
    ],
)
def test_refused(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(project)
    weights = "out/finetune/weights.safetensors"
    more = {
        "predict": ["--weights", weights, "--out", "new"],
        "export": [weights, "--out", "new"],
        "compare": [],
    }[arguments[0]]
    assert (
        main(
            [arguments[0], *more[:1], *arguments[1:], *more[1:]]
            if arguments[0] == "export"
            else [*arguments, *more]
        )
        == 1
    )
    assert f"error: {message}" in capsys.readouterr().err
    assert not (project / "new").exists()
