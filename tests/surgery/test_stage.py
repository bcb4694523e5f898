"""The surgery stage: same inputs, same bytes; what goes wrong leaves what was there."""

from pathlib import Path

import pytest
import torch

from detectors import tiny
from topwork import read_weights, verify_graft, write_weights
from topwork.errors import ClassPlanError, TopworkError
from topwork.params.document import parse_params
from topwork.project.fetch import PRETRAINED
from topwork.project.surgery import GRAFTED, RECEIPT
from topwork.stages import surgery
from topwork.weights.format import Weights

COLUMNS = ("__background__", "person", "car", "truck")


def _params(**section):
    return parse_params(
        {
            "dataset": {"root": "data", "train": {"annotations": "a.json"}},
            "surgery": {"classes": {"truck": "keep", "hat": "new"}, **section},
        }
    )


@pytest.fixture
def project(tmp_path):
    torch.manual_seed(0)
    write_weights(
        tmp_path / PRETRAINED,
        Weights(
            tiny.ssd(4).state_dict(),
            COLUMNS,
            f"{Path(tiny.__file__)}:ssd",
            provenance={"source": "here"},
        ),
    )
    return tmp_path


def test_writes_weights_and_a_receipt_that_holds(project):
    surgery.run(_params(), project)
    weights = read_weights(project / GRAFTED, trust=True)
    assert weights.columns == ("__background__", "truck", "hat")
    assert weights.absorbed == ("person", "car")
    assert weights.provenance == {
        "source": "here",
        "graft": {"rows": {"truck": "keep", "hat": "new"}, "dropped": "absorb"},
    }
    files = [project / path for path in (PRETRAINED, GRAFTED, RECEIPT)]
    assert (
        "the file's SHA-256 is the receipt's"
        in verify_graft(*files, builder=f"{Path(tiny.__file__)}:ssd")[-1]
    )
    text = files[2].read_text()
    assert str(project) not in text.replace(str(Path(tiny.__file__)), "")
    first = [file.read_bytes() for file in files]
    surgery.run(_params(), project)
    assert [file.read_bytes() for file in files] == first


def test_a_wrong_plan_changes_nothing(project):
    surgery.run(_params(), project)
    before = (project / GRAFTED).read_bytes()
    with pytest.raises(ClassPlanError, match="lorry wants 'lorry'"):
        surgery.run(_params(classes={"lorry": "keep"}), project)
    assert (project / GRAFTED).read_bytes() == before


def test_a_missing_source(tmp_path):
    with pytest.raises(TopworkError, match=r"pretrained.safetensors: no such file"):
        surgery.run(_params(), tmp_path)
