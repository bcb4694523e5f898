"""Section `finetune`: training, and what protects kept classes in it."""

from typing import Literal

from pydantic import Field, model_validator

from topwork.params.section import Section

LEAST_MIX = 0.02
"""The smallest share of a branch that is tried."""


class BranchParams(Section):
    """The second branch under `protect: branch`."""

    cut: str = "auto"
    """Where the branch's own trunk begins: after this module (`backbone.body.layer2`); `auto`,
    three blocks below the finest feature map that the head takes; or `none`, which shares nothing.
    """
    kept: Literal["exact", "mix"] = "exact"
    """Kept classes' detections: the pretrained detector's bit for bit, or a mean of both branches
    (one-stage detectors only), which adapts them a little.
    """
    mix: Literal["retention"] | float = 0.05
    """The branch's share in that mean: a number, or `retention`, the largest that keeps
    `finetune.least_retention`.
    """

    @property
    def share(self) -> float:
        """The branch's share in kept classes' scores and boxes, until one is chosen; 0 where they
        are kept exactly.
        """
        if self.kept == "exact":
            return 0.0
        return LEAST_MIX if self.mix == "retention" else self.mix

    @model_validator(mode="after")
    def _check_mix(self) -> "BranchParams":
        if isinstance(self.mix, float) and not 0 < self.mix < 1:
            raise ValueError(f"mix is {self.mix}, must lie between 0 and 1 (`kept: exact` is 0)")
        if self.mix == "retention" and self.kept == "exact":
            raise ValueError("mix: retention chooses a share; write `kept: mix` as well")
        return self


class FinetuneParams(Section):
    """Fine-tuning: read by `finetune`.

    docs/training.md measures what each option of protection is worth, docs/keeping.md which way of
    protecting suits what.
    """

    protect: Literal["weights", "branch"] = "weights"
    """How kept classes are protected: `weights` trains one detector and holds it to the pretrained
    one (distill, replay, interpolation); `branch` leaves that as it is and trains a second branch
    on it, for which those three aren't needed and are left out.
    """
    branch: BranchParams = BranchParams()
    """The second branch."""

    epochs: int = Field(default=12, ge=0)
    """Passes over the training images; 0 leaves the grafted weights as they are."""
    head_epochs: int = Field(default=1, ge=0)
    """Of these, at first, with a frozen trunk: new rows settle before they pull at the features
    that kept rows stand on.
    """
    batch_size: int = Field(default=8, ge=1)
    """Images a step and process."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that a step's images are divided into, their gradients added up; less
    memory, the same step.
    """
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
    """Decay of a moving average of the weights, which is then what is validated and written. Null:
    none.
    """
    early_stop: int | None = Field(default=None, ge=1)
    """Validations without a better mAP after which training ends, with the best weights. Null:
    never.
    """
    validate_every: int = Field(default=4, ge=0)
    """Epochs between validations; 0: only to choose the interpolation."""
    seed: int = 0
    """Order of images, augmentation, dropout, sampling of proposals."""
    augmentation: Literal["none", "hflip", "multiscale", "ssd", "ssdlite"] = "hflip"
    """torchvision's reference presets."""

    trunk_lr: float = Field(default=0.5, ge=0)
    """Learning rate of the trunk over that of the head; 0 freezes the trunk (its features are then
    computed once, if memory allows).
    """
    freeze_batch_norm: bool = True
    """Leave the running statistics and scales of batch norm as pretrained."""
    distill: float = Field(default=1.0, ge=0)
    """Weight of a loss that holds the logits of pretrained classes (kept and absorbed) to the
    pretrained detector's output for the same image.
    """
    distill_boxes: float = Field(default=1.0, ge=0)
    """The same for box regression where the pretrained detector sees an object; times `distill`."""
    teacher_boxes: bool = True
    """Add the confident boxes of kept classes that the `unlabelled` stage found missing from the
    annotations.
    """
    teacher_min_score: float = Field(default=0.7, gt=0, le=1)
    """Score from which such a box is added."""
    interpolation: Literal["validation", "retention", "off"] | float = "validation"
    """Share of the way from the grafted to the fine-tuned weights that is kept at the end (new rows
    go all the way): a number; `validation`, the smallest share that costs no mAP on validation
    images; or `retention`, the largest that keeps `least_retention`. `off` is 1.0."""
    interpolation_tolerance: float = Field(default=0.02, ge=0, lt=1)
    """Share of the best validation mAP that counts as no cost."""
    least_retention: float = Field(default=0.95, gt=0, le=1)
    """Where a share is chosen by retention: least AP of every kept class over the pretrained
    detector's, on images of dataset.replay that nothing is trained on (their second half, by id,
    where the first is replayed; copies of what is trained on are left out). Where no share keeps
    that much, the smallest is taken, and noted in the record. It's another set than the contract's:
    a little more or less is luck.
    """
    replay: float = Field(default=0.25, ge=0, lt=1)
    """Share of each batch taken from dataset.replay, where that is given."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward pass: `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    compile: bool = False
    """Compile the trunk by torch.compile; worth its minute on long runs on a GPU."""
    deterministic: bool = True
    """Only deterministic algorithms; same inputs and machine kind, same bits."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null: as many as there are cores. Part of what decides the bits."""
    processes: int = Field(default=1, ge=1)
    """Training processes (DDP) a machine, one a GPU; each takes batch_size images a step."""
    nodes: int = Field(default=1, ge=1)
    """Machines. More than one are started by torchrun, with a command on each (docs/training.md).
    """
    feature_cache_mib: int = Field(default=1024, ge=0)
    """Memory for the features of a frozen trunk, or of what lies below a branch's cut, and for the
    pretrained detector's outputs.
    """

    @property
    def by_retention(self) -> bool:
        """Whether the result's share is chosen by what it keeps on images of dataset.replay."""
        if self.protect == "branch":
            return self.branch.kept == "mix" and self.branch.mix == "retention"
        return self.interpolation == "retention"

    @model_validator(mode="after")
    def _check_shares(self) -> "FinetuneParams":
        if isinstance(self.interpolation, float) and not 0 <= self.interpolation <= 1:
            raise ValueError(f"interpolation is {self.interpolation}, must lie in 0..1")
        if self.epochs and self.head_epochs > self.epochs:
            raise ValueError(f"head_epochs is {self.head_epochs}, more than epochs ({self.epochs})")
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> "FinetuneParams":
        """What is left out under the other way of protecting is a setting of something that isn't
        there; a choice by retention is a promise, which would be broken without a word.
        """
        branched = self.protect == "branch"
        if branched and self.interpolation == "retention":
            raise ValueError(
                "interpolation: retention chooses how far the weights go, and under `protect:"
                " branch` the pretrained ones stay. Leave it out; to choose the branch's share in"
                " kept classes, write `branch: {kept: mix, mix: retention}`"
            )
        if not branched and self.branch.mix == "retention":
            raise ValueError(
                "branch.mix: retention chooses a branch's share, and under `protect: weights` there"
                " is no branch. Leave it out; to choose how far the weights go, write"
                " `interpolation: retention`"
            )
        return self
