"""The whole of params.yaml: every section, put together in this one place."""

from pathlib import Path
from typing import Any

from topwork.errors import ParamsError
from topwork.params.dataset import DatasetParams
from topwork.params.demo import DemoParams
from topwork.params.evaluate import EvaluateParams
from topwork.params.fetch import FetchParams
from topwork.params.finetune import FinetuneParams
from topwork.params.learned import LearnParams
from topwork.params.predict import PredictParams
from topwork.params.report import ReportParams
from topwork.params.retention import KeepParams
from topwork.params.runtime import RuntimeParams
from topwork.params.section import PARAMS_FILE, Section, parse, read_document
from topwork.params.surgery import SurgeryParams
from topwork.params.unlabelled import UnlabelledParams

MOVED = {
    "evaluate.batch_size": "predict.batch_size",
    "evaluate.device": "runtime.device",
    "finetune.checkpoint_steps": "runtime.checkpoint_steps",
    "finetune.device": "runtime.device",
    "finetune.image_cache_mib": "runtime.image_cache_mib",
    "finetune.workers": "runtime.workers",
    "unlabelled.batch_size": "predict.batch_size",
    "unlabelled.device": "runtime.device",
}
"""Keys of earlier versions -> what they are called now."""


class Params(Section):
    """The whole of params.yaml."""

    demo: DemoParams = DemoParams()
    dataset: DatasetParams
    fetch: FetchParams = FetchParams()
    surgery: SurgeryParams
    unlabelled: UnlabelledParams = UnlabelledParams()
    finetune: FinetuneParams = FinetuneParams()
    predict: PredictParams = PredictParams()
    evaluate: EvaluateParams = EvaluateParams()
    retention: dict[str, KeepParams] = {}
    learned: dict[str, LearnParams] = {}
    report: ReportParams = ReportParams()
    runtime: RuntimeParams = RuntimeParams()


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, isn't YAML, or a key or value is at fault; all faults are
            named together.
    """
    return parse_params(read_document(path), path)


def parse_params(raw: dict[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Check params that are already read; `path` is for messages.

    Raises:
        ParamsError: a key or value is at fault; all faults are named together. Or a class is to be
            kept exactly by a way of protecting that changes it, or a share is to be chosen by
            retention without images to replay.
    """
    params = parse(Params, raw, path, MOVED)
    _check_exactness(params, path)
    _check_replay(params, path)
    return params


def _check_exactness(params: Params, path: Path) -> None:
    exact = [name for name, asked in params.retention.items() if asked.exact]
    finetune = params.finetune
    if finetune.protect != "branch":
        way, instead = f"protect: {finetune.protect}", "`protect: branch`"
    else:
        way, instead = "branch: {kept: mix}", "`kept: exact`"
    if exact and (finetune.protect != "branch" or finetune.branch.share):
        raise ParamsError(
            f"{path}: retention: {', '.join(exact)}: exact, and finetune.{way} changes kept"
            f" classes' detections. Write {instead} in finetune, or `min: 0.95` in place of"
            " `exact`."
        )


def _check_replay(params: Params, path: Path) -> None:
    if not params.finetune.by_retention:
        return
    way = "interpolation" if params.finetune.protect == "weights" else "branch.mix"
    if not params.surgery.plan().kept:
        raise ParamsError(
            f"{path}: finetune.{way}: retention chooses by what kept classes keep, and"
            " surgery.classes keeps none. Write `validation`, or a number."
        )
    if params.dataset.replay is None:
        raise ParamsError(
            f"{path}: finetune.{way}: retention needs annotated images of the pretrained detector's"
            " own domain to measure on, and dataset.replay isn't given. Name some there, or write a"
            " number."
        )


def check_tracked(raw: dict[str, Any], graph: Path = Path("dvc.yaml")) -> None:
    """Hold the document's sections against those that stages track in dvc.yaml: where one is
    missing, DVC would stop in the middle of the pipeline.

    Raises:
        ParamsError: sections are missing; all are named.
    """
    if not graph.is_file():
        return
    stages = read_document(graph).get("stages")
    tracked = {
        key.partition(".")[0]
        for stage in (stages.values() if isinstance(stages, dict) else ())
        for key in stage.get("params", ())
        if isinstance(key, str)
    }
    if missing := sorted(tracked - set(raw)):
        raise ParamsError(
            f"{PARAMS_FILE}: no section {', '.join(missing)}, which DVC needs for its stages."
            f" Write {', '.join(f'`{name}: {{}}`' for name in missing)} for the defaults."
        )
