"""params.yaml, typed: one section a stage, a docstring a field.

`load_params()` reads the file as DVC does (YAML 1.2), refuses what it doesn't know and names the nearest key that it does.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from topwork.errors import ParamsError

PARAMS_FILE = Path("params.yaml")


class Section(BaseModel):
    """A section of params.yaml; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DemoParams(Section):
    """The embedded demo: what the `demo` stage draws. A project with data of its own never runs it."""

    seed: int = 7
    """Same seed, same pictures, to the byte."""
    yard_train: int = Field(default=120, ge=1)
    """Training images of the custom set."""
    yard_val: int = Field(default=60, ge=1)
    """Validation images of the custom set."""
    yard_test: int = Field(default=150, ge=1)
    """Test images of the custom set."""
    street_test: int = Field(default=150, ge=1)
    """Held-out images of the source world, for retention."""
    street_replay: int = Field(default=400, ge=1)
    """Other images of the source world, to be mixed into fine-tuning."""


class SetParams(Section):
    """One set of labelled images."""

    annotations: Path
    """COCO instances JSON, a Pascal VOC folder, or a YOLO data.yaml."""
    images: Path | None = None
    """Folder, zip or tar with the images; left out where the format says it (VOC, YOLO)."""
    subset: str | None = None
    """Which list of a VOC (ImageSets/Main/NAME.txt) or YOLO set (train, val, test); left out, the one named like the split."""


class SplitParams(Section):
    """How to part a set that comes unsplit (only `train` is given)."""

    val: float = Field(default=0.15, ge=0, lt=1)
    """Share of images for validation."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of images for the test."""
    group_by: str | None = None
    """Images of one group stay together: a field of the image record, or a regular expression on the file name (its first group)."""
    assigned: Path | None = None
    """A CSV of earlier places (a copy of out/validate/splits.csv): those stay, new images go where their classes lack most."""


class DatasetParams(Section):
    """The data: read by `validate`."""

    root: Path
    """The folder that holds all of the data; DVC watches it. Every path below is relative to it."""
    train: SetParams
    """Images to learn from."""
    val: SetParams | None = None
    """Images to choose by (interpolation, early stop)."""
    test: SetParams | None = None
    """Images to report on."""
    source: SetParams | None = None
    """Held-out images of the pretrained detector's own domain: where retention is measured."""
    replay: SetParams | None = None
    """Training images of the source domain, mixed into fine-tuning."""
    split: SplitParams | None = None
    """With `train` alone: how it is parted. With several splits only `group_by` is looked at: no group may stand in two of them."""
    aliases: dict[str, str] = {}
    """Category name in the data -> name used here, where the two differ."""
    drop: list[int | str] = []
    """Annotation ids to leave out, by explicit choice (`topwork validate --fix-list` writes them); `train:123` where splits share ids."""
    drop_images: list[int | str] = []
    """Image ids to leave out, with their annotations; `train:123` where splits share ids."""
    fail_on: Literal["error", "warning", "never"] = "error"
    """The severity of findings that stops the stage."""

    @model_validator(mode="after")
    def _join_root(self) -> "DatasetParams":
        """Put `root` before every path, so that nobody else needs to."""
        joined = {
            name: given.model_copy(
                update={"annotations": self.root / given.annotations, "images": self.root / given.images if given.images else None}
            )
            for name in ("train", "val", "test", "source", "replay")
            if (given := getattr(self, name)) is not None
        }
        for name, value in joined.items():
            object.__setattr__(self, name, value)
        if self.split is not None and self.split.assigned is not None:
            object.__setattr__(self, "split", self.split.model_copy(update={"assigned": self.root / self.split.assigned}))
        return self


class FetchParams(Section):
    """The pretrained weights: read by `fetch`."""

    source: str = "demo"
    """`demo`, `torchvision:BUILDER/ENUM`, a URL, a local file, `dvc:REPO#PATH@REV`, or `hf:REPO/FILE@REVISION`."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """Pinned SHA-256 (64 hex digits); without it weights.lock holds the one seen first."""
    builder: str | None = None
    """torchvision builder name, `module:function` or `path/to/file.py:function`; left out where the source says it."""
    builder_args: dict[str, Any] = {}
    """Further keyword arguments of the builder."""
    classes: list[str] | str | None = None
    """Names of the class columns, or a category set (`coco-91`, `coco-80`, `voc-21`, `open-images-601`) or a text file; left out where the source says it."""
    prefix: str | None = None
    """Prefix to strip from tensor names (`module.`), or the key of a nested state_dict (`state_dict`): never done unasked."""
    mirror: str | None = None
    """Prefix put in place of the source's scheme and host (also: TOPWORK_MIRROR)."""
    offline: bool = False
    """Use only what the cache holds (also: TOPWORK_OFFLINE=1)."""
    max_gib: float = Field(default=16, gt=0, allow_inf_nan=False)
    """Largest file, and largest sum of its tensors, in GiB: a limit against bombs."""
    timeout_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Seconds without a byte that count as a stall."""
    tries: int = Field(default=6, ge=1)
    """Tries in a row without progress before a download gives up."""


class SurgeryParams(Section):
    """The class plan: read by `surgery`."""

    classes: dict[str, Any]
    """Target classes in order: `keep`, `{keep: NAME}`, `{like: NAME}`, `{like: [NAMES]}`, `{like: {NAME: weight}}`, `{new: prior|reference|zero}`."""
    dropped: Literal["remove", "absorb"] = "absorb"
    """What becomes of the other rows of a softmax head: taken out, or kept frozen as part of background."""
    prior: float = Field(default=0.01, gt=0, lt=1)
    """Probability at which a `new: prior` row starts."""
    seed: int = 0
    """For `new: reference` (the builder's own random init)."""

    @field_validator("classes")
    @classmethod
    def _not_empty(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("names no class; write at least one, such as `person: keep`")
        return value


class FinetuneParams(Section):
    """Fine-tuning: read by `finetune`. What each option of protection is worth stands in docs/training.md."""

    epochs: int = Field(default=12, ge=0)
    """Passes over the training images; 0 leaves the grafted weights as they are."""
    head_epochs: int = Field(default=1, ge=0)
    """Of these, at first, with a frozen trunk: new rows settle before they pull at the features that kept rows stand on."""
    batch_size: int = Field(default=8, ge=1)
    """Images a step and process."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that a step's images are parted into, their gradients added up; less memory, the same step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD with momentum, or AdamW."""
    lr: float = Field(default=0.001, gt=0)
    """Peak learning rate of the head; for SGD rather 0.01."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=0.0005, ge=0)
    """Pull of weights towards zero; class rows, norms and biases are spared."""
    warmup_steps: int = Field(default=30, ge=0)
    """Steps over which the learning rate rises from nothing."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How it goes on from there."""
    clip_norm: float | None = Field(default=10.0, gt=0)
    """Longest gradient; longer ones are scaled down. Null: never."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what is validated and written. Null: none."""
    early_stop: int | None = Field(default=None, ge=1)
    """Validations without a better mAP after which training ends, with the best weights. Null: never."""
    validate_every: int = Field(default=4, ge=0)
    """Epochs between validations; 0: only to choose the interpolation."""
    seed: int = 0
    """Order of images, augmentation, dropout, sampling of proposals."""
    augmentation: Literal["none", "hflip", "multiscale", "ssd", "ssdlite"] = "hflip"
    """torchvision's reference presets."""

    trunk_lr: float = Field(default=0.5, ge=0)
    """Learning rate of the trunk over that of the head; 0 freezes the trunk (its features are then computed once, if memory allows)."""
    freeze_batch_norm: bool = True
    """Leave the running statistics and scales of batch norm as pretrained."""
    distill: float = Field(default=1.0, ge=0)
    """Weight of a loss that holds the logits of pretrained classes (kept and absorbed) to what the pretrained detector says of the same image."""
    distill_boxes: float = Field(default=1.0, ge=0)
    """The same for box regression where the pretrained detector sees an object; times `distill`."""
    teacher_boxes: bool = True
    """Add the confident boxes of kept classes that the `unlabelled` stage found missing from the annotations."""
    teacher_min_score: float = Field(default=0.7, gt=0, le=1)
    """Score from which such a box is added."""
    interpolation: Literal["validation", "off"] | float = "validation"
    """Share of the way from the grafted to the fine-tuned weights that is kept at the end (new rows go all the way): a number,
    or chosen on validation images as the smallest share that costs no mAP. `off` is 1.0."""
    interpolation_tolerance: float = Field(default=0.02, ge=0, lt=1)
    """Share of the best validation mAP that counts as no cost."""
    replay: float = Field(default=0.25, ge=0, lt=1)
    """Share of each batch taken from dataset.replay, where that is given."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`..."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward pass: `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    compile: bool = False
    """Compile trunk and head by torch.compile; worth its minutes on long runs on a GPU."""
    deterministic: bool = True
    """Only deterministic algorithms; same inputs and machine kind, same bits."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null: as many as there are cores. Part of what decides the bits."""
    workers: int = Field(default=1, ge=0)
    """Processes that load images; any number gives the same bits."""
    processes: int = Field(default=1, ge=1)
    """Training processes (DDP), one a GPU; each takes batch_size images a step."""
    image_cache_mib: int = Field(default=512, ge=0)
    """Memory for decoded images; a set that fits is decoded once."""
    feature_cache_mib: int = Field(default=1024, ge=0)
    """Memory for the frozen trunk's features and the pretrained detector's outputs."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, beside one an epoch."""

    @model_validator(mode="after")
    def _check_shares(self) -> "FinetuneParams":
        if isinstance(self.interpolation, float) and not 0 <= self.interpolation <= 1:
            raise ValueError(f"interpolation is {self.interpolation}, must lie in 0..1")
        if self.head_epochs > self.epochs:
            raise ValueError(f"head_epochs is {self.head_epochs}, more than epochs ({self.epochs})")
        return self


class EvaluateParams(Section):
    """Evaluation: read by `evaluate`."""

    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass."""
    bootstrap: int = Field(default=200, ge=0)
    """Resamples of the images for confidence intervals; 0 leaves them out."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    seed: int = 0
    """Draws of the resamples; the same for every model, so that differences are paired."""
    masks: bool = False
    """Also evaluate masks (Mask R-CNN, annotations with segmentation)."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`..."""


class KeepParams(Section):
    """What the retention contract asks for one kept class."""

    min: float = Field(gt=0)
    """Least fine-tuned AP over pretrained AP."""
    on: Literal["source", "test"] = "source"
    """The set it is measured on."""
    by: Literal["estimate", "interval"] = "estimate"
    """What has to reach `min`: the retention itself, or the lower end of its interval (stricter: no luck involved)."""


class UnlabelledParams(Section):
    """Search for kept-class objects that the training annotations lack: read by `unlabelled`."""

    min_score: float = Field(default=0.6, gt=0, lt=1)
    """Score from which the pretrained detector counts as confident."""
    max_iou: float = Field(default=0.3, ge=0, le=1)
    """A box that overlaps an annotation of its class by more is taken as labelled."""
    max_inside: float = Field(default=0.5, ge=0, le=1)
    """So is a box of which a larger part lies in an annotation of its class: a torso in its person."""
    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`..."""


class ReportParams(Section):
    """The report: read by `report`."""

    title: str = "Fine-tuning report"
    """Heading of the page."""
    pictures: int = Field(default=6, ge=0)
    """Test images shown before and after."""
    min_score: float | None = Field(default=None, gt=0, lt=1)
    """Score from which detections are drawn on them; left out: each class's own, at which its F1 is highest."""


class Params(Section):
    """The whole of params.yaml."""

    demo: DemoParams = DemoParams()
    dataset: DatasetParams
    fetch: FetchParams = FetchParams()
    surgery: SurgeryParams
    unlabelled: UnlabelledParams = UnlabelledParams()
    finetune: FinetuneParams = FinetuneParams()
    evaluate: EvaluateParams = EvaluateParams()
    retention: dict[str, KeepParams] = {}
    report: ReportParams = ReportParams()


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, isn't YAML, or a key or value is at fault; all faults are named together.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with path.open(encoding="utf-8") as stream:
            raw = YAML(typ="safe", pure=True).load(stream)
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file. Run inside a topwork project, or make one with `topwork init FOLDER`.") from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: found {type(raw).__name__}, expected sections such as `dataset:` and `surgery:`.")
    return parse_params(raw, path)


def parse_params(raw: dict[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Check params that are already read; `path` is for messages.

    Raises:
        ParamsError: a key or value is at fault; all faults are named together.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(_fault(dict(item)) for item in error.errors())
        raise ParamsError(f"{path}: {faults}. Mend {'it' if error.error_count() == 1 else 'them'} and run again.") from error


def _fault(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        nearest = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.0)
        hint = f", did you mean `{nearest[0]}`?" if nearest else ""
        return f"`{where}`: unknown key{hint} (known: {', '.join(known)})"
    if item["type"] == "missing":
        return f"`{where}`: missing"
    return f"`{where}`: found {item['input']!r}, {item['msg'][:1].lower()}{item['msg'][1:]}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `location` (a section that is a dict or optional is looked through)."""
    section: type[BaseModel] = Params
    for part in location:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return list(section.model_fields)
