"""The real case: COCO weights through their own builder and pictures of building sites, by
docs/real_case.yaml alone, and by docs/real_case_exact.yaml with a second branch.
"""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import done


@pytest.mark.long
@pytest.mark.parametrize("file", ["real_case.yaml", "real_case_exact.yaml"])
def test_the_params_file_of_the_docs_runs_on_real_weights_and_data(
    root: Path, real: Path, tmp_path: Path, file: str
) -> None:
    folder = tmp_path / "real_case"
    done(tmp_path, "topwork", "init", str(folder), "--demo")
    text = (root / "docs" / file).read_text(encoding="utf-8").replace("../shared/real", str(real))
    params = YAML(typ="safe", pure=True).load(text)
    ids = [
        image["id"]
        for image in json.loads((real / "hardhat/train.3class.coco.json").read_text())["images"]
    ]
    # one epoch of eight pictures: the way, not the figures
    params["dataset"]["drop_images"] = [f"train:{image_id}" for image_id in ids[8:]]
    params["finetune"]["epochs"] = 1
    params["evaluate"]["bootstrap"] = 20
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)
    done(folder, "dvc", "repro", timeout=1800)
    sets = json.loads((folder / "out/evaluate/table.json").read_text())["sets"]
    pretrained, grafted = (
        sets["source"][model]["classes"]["person"]["ap"] for model in ("pretrained", "grafted")
    )
    assert pretrained == pytest.approx(0.318, abs=0.01)
    if params["surgery"]["dropped"] == "absorb":  # else scores have fewer competitors
        assert grafted >= 0.99 * pretrained
    assert "hard_hat" in sets["test"]["finetuned"]["classes"]
    assert (folder / "out/report/report.html").stat().st_size > 10_000
    (contract,) = json.loads((folder / "out/evaluate/verdict.json").read_text())["contracts"]
    assert ("exact: proved" in contract["sentence"]) == (file == "real_case_exact.yaml")
    if file == "real_case_exact.yaml":
        assert sets["source"]["finetuned"]["classes"]["person"]["ap"] == pretrained
