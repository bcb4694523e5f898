"""Fine-tuning: the whole loop in sight, in plain PyTorch.

    for each epoch: for each batch: losses, backward, protect rows, step; checkpoint; now and then
        validate
    at the end: interpolate between the grafted and the fine-tuned weights

The bits of the result depend on the job and the machine's kind alone: order, augmentation and every
other draw are decided by keys (seed, what, epoch, step), so that a run that was killed and started
again ends like one that wasn't.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topwork.detectors.axes import head_spec_of
from topwork.errors import TrainingError
from topwork.params.finetune import FinetuneParams
from topwork.params.runtime import RuntimeParams
from topwork.project.finetune import Interpolation
from topwork.training.batches import ProcessRank, epoch_batches, loader
from topwork.training.checkpoint import Checkpoints
from topwork.training.curves import Curves
from topwork.training.dataset import DetectionDataset, Key, Target
from topwork.training.device import Device, exactness, loader_processes
from topwork.training.distributed import broadcast_from_rank0, wrap
from topwork.training.features import FeatureBank
from topwork.training.interpolation import MeasureTensors, choose, interpolate
from topwork.training.measuring import MeasureDetector
from topwork.training.micro_batches import gradients, take_less_memory
from topwork.training.models import learning_part, teacher_of, training_detector
from topwork.training.objective import Objective
from topwork.training.outcome import Outcome, fine_tuned, run_record
from topwork.training.progress import RunProgress
from topwork.training.protection import Protection, row_masks
from topwork.training.schedule import Schedule
from topwork.training.seeds import seed_of
from topwork.training.state import State
from topwork.training.step_terms import UnreadStep
from topwork.training.stop_signal import stop_after_step
from topwork.weights.branches import learning_weights
from topwork.weights.format import Weights

Batch = tuple[list[Key], tuple[list[Tensor], list[Target]]]


def _unchecked() -> None:
    """Of a job whose images nobody can change."""


@dataclass(frozen=True)
class Job:
    """All that a run is made of.

    Attributes:
        weights: the grafted ones.
        kept: target classes whose rows came from the pretrained head.
        dataset: training images first, then those to replay.
        train: how many of the dataset's images are for training; the others are replayed.
        params: finetune.
        device: where to train.
        runtime: loader processes, steps between checkpoints.
        validate: detector in evaluation mode -> {"map": mAP, "ap/CLASS": AP...} on validation
            images; None where there are none.
        measure_kept: detector in evaluation mode -> {kept class: AP over the pretrained
            detector's}, on images of that one's domain; None where no share is chosen by them.
        notes: for the record.
        scratch: folder of checkpoints, or None.
        check_images: raises where an image changed since the start; called before each checkpoint,
            so that none is kept of pixels that its key doesn't stand for.
        curves: folder for DVCLive, or None.
        process: which process this is.
        shown: whether to print progress.
    """

    weights: Weights
    kept: tuple[str, ...]
    dataset: DetectionDataset
    train: int
    params: FinetuneParams
    device: Device
    runtime: RuntimeParams = field(default_factory=RuntimeParams)
    validate: MeasureDetector | None = None
    measure_kept: MeasureDetector | None = None
    notes: tuple[str, ...] = ()
    scratch: Path | None = None
    check_images: Callable[[], None] = _unchecked
    curves: Path | None = None
    process: ProcessRank = field(default_factory=ProcessRank)
    shown: bool = True


def fine_tune(job: Job) -> Outcome:
    """Train, from the grafted weights or from the newest checkpoint of the same job, to the end.

    Raises:
        TrainingError: the loss isn't finite, or nothing can learn.
        TopworkError: the disk is full, or an image changed.
    """
    with exactness(job.params, job.device):
        return _Run(job).to_end()


class _Run:
    """One run of a job."""

    def __init__(self, job: Job) -> None:
        params, device = job.params, job.device
        self.job, self.params, self.device = job, params, device
        self.first = job.process.rank == 0
        torch.manual_seed(seed_of(params.seed, "run"))
        learning = learning_weights(job.weights)
        self.branched = job.weights.branches is not None
        spec = head_spec_of(learning)
        self.family = spec.family
        self.start = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in learning.state_dict.items()
        }
        masks = row_masks(learning, job.kept, spec)
        self.protection = Protection(params, masks, self.family.trunk).to(device.device)
        self.detector = training_detector(job.weights, self.family, params, device)
        model = learning_part(self.detector)
        teacher, why_none = teacher_of(
            model, job.weights, job.kept, spec, job.dataset, params, device
        )
        self.objective = Objective(self.detector, params, teacher)
        self.schedule = Schedule(params, len(self._batches(0)))
        fused = not device.scaled or device.device.type == "cuda"
        self.state = State(
            model,
            self.protection.optimizer(model, fused),
            torch.amp.GradScaler(device.device.type, enabled=device.scaled),
            accumulate=params.accumulate,
        )
        self._unread: UnreadStep | None = None
        self.state.notes += (*job.notes, *filter(None, [why_none]))
        unprotected = teacher is None and not self.branched and not self._replays()
        if job.kept and params.trunk_lr and unprotected:
            self.state.notes.append(
                f"{', '.join(job.kept)} may be forgotten: no images to replay (dataset.replay) and"
                " no distillation (finetune.distill)"
            )

    def _batches(self, epoch: int) -> list[list[Key]]:
        params = self.params
        return epoch_batches(
            epoch,
            train=self.job.train,
            replay=self._replays(),
            replay_fraction=params.replay,
            batch_size=params.batch_size,
            seed=params.seed,
            process=self.job.process,
        )

    def _replays(self) -> int:
        """How many images there are to replay."""
        return len(self.job.dataset) - self.job.train

    def to_end(self) -> Outcome:
        """The story: resume, train epoch by epoch, interpolate."""
        state = self.state
        self.checkpoints = Checkpoints(self.job.scratch)
        found = self.checkpoints.latest() if self.first else None
        if saved := broadcast_from_rank0(found, self.job.process):  # others may lie elsewhere
            state.restore(saved)
        self.curves = Curves(self.job.curves if self.first else None, state.history)
        self.progress = RunProgress(
            self.schedule.total,
            state.epoch * self.schedule.steps + state.step,
            shown=self.job.shown and self.first,
        )
        for note in state.notes:
            self.progress.message(note)
        if saved:
            self.progress.message(f"resumed at epoch {state.epoch + 1}, step {state.step}")
        try:
            with stop_after_step() as stop_requested:
                self._train(stop_requested)
            chosen = self._interpolate()
        finally:
            self.progress.end()
        self.curves.end()
        return self._outcome(chosen)

    def _train(self, stop_requested: threading.Event) -> None:
        state, params = self.state, self.params
        loaded: Iterator[Batch] | None = None
        stream: Iterator[Batch] | None = None
        state.model.train()
        bank = self._bank() if self.branched else None  # what lies below the cut never learns
        try:
            while state.epoch < params.epochs and not state.is_stale(params.early_stop):
                thawed = state.epoch >= params.head_epochs and params.trunk_lr > 0
                state.model.train()
                self.protection.freeze(state.model, trunk=thawed)
                if not self.branched:
                    bank = None if thawed else self._bank()
                self.objective.bank = bank
                module = wrap(self.objective, self.job.process, self.device.device)
                until = self._next_thaw()
                if bank is not None:
                    stream = self._banked(bank, until)
                else:
                    stream = loaded = loaded or self._loaded()
                while state.epoch < until and not state.is_stale(params.early_stop):
                    keys, (images, targets) = next(stream)
                    self._step(module, keys, images, targets)
                    if state.step == self.schedule.steps:
                        self._end_epoch()
                        state.model.train()
                        self.protection.freeze(state.model, trunk=thawed)
                    elif (steps := self.job.runtime.checkpoint_steps) and state.step % steps == 0:
                        self._save()
                    if stop_requested.is_set():
                        self._save()
                        raise TrainingError(
                            f"finetune: stopped by a signal at epoch {state.epoch + 1}, step"
                            f" {state.step}; run again to go on from there (dvc repro)."
                        )
        finally:
            # its loaders end here; at the interpreter's end they would be waited for, since they
            # ignore SIGTERM
            stream = loaded = None

    def _bank(self) -> FeatureBank | None:
        """The frozen part's features, where keeping them pays."""
        bank, message = FeatureBank.where_it_pays(
            self.detector, self.family, self.job.dataset, self.device, self.params
        )
        if message:
            self.progress.message(message)
        return bank

    def _next_thaw(self) -> int:
        """The epoch in which other tensors begin to learn, or the end."""
        return (
            self.params.head_epochs
            if self.state.epoch < self.params.head_epochs and self.params.trunk_lr > 0
            else self.params.epochs
        )

    def _left(self, until: int) -> list[list[Key]]:
        """The batches from where the run stands up to an epoch."""
        epochs = range(self.state.epoch, until)
        return [batch for epoch in epochs for batch in self._batches(epoch)][self.state.step :]

    def _loaded(self) -> Iterator[Batch]:
        """Batches up to the end, with their images."""
        batches = self._left(self.params.epochs)
        self.job.dataset.preload()
        loaded = loader(
            self.job.dataset,
            batches,
            workers=loader_processes(self.job.runtime.workers, self.device, self.params.processes),
            pin_memory=self.device.on_gpu,
        )
        return zip(batches, loaded, strict=True)

    def _banked(self, bank: FeatureBank, until: int) -> Iterator[Batch]:
        """Batches up to an epoch, whose images nobody needs to load: their features are in the
        bank.
        """
        self.job.dataset.preload()
        return ((batch, bank.targets(batch)) for batch in self._left(until))

    def _step(
        self, module: nn.Module, keys: list[Key], images: list[Tensor], targets: list[Target]
    ) -> None:
        """One step of the optimizer, in as many micro-batches as memory needs."""
        state, params = self.state, self.params
        number = state.epoch * self.schedule.steps + state.step
        self.schedule.apply(state.optimizer, number)
        while True:
            torch.manual_seed(seed_of(params.seed, "step", number, self.job.process.rank))
            state.optimizer.zero_grad(set_to_none=True)
            try:
                terms = gradients(module, images, targets, state, self.device, self.job.process)
                break
            except torch.OutOfMemoryError as error:
                note = take_less_memory(state, len(images), self.device, self.job.process, error)
                state.notes.append(note)
                self.progress.message(note)
        state.scaler.unscale_(state.optimizer)
        self.protection.before_step(state.model)
        if params.clip_norm:
            learning = [
                parameter for parameter in state.model.parameters() if parameter.grad is not None
            ]
            nn.utils.clip_grad_norm_(learning, params.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if params.ema:
            state.follow(min(params.ema, (1 + number) / (10 + number)))
        state.step += 1
        self._read_terms()  # of the step before; the device has this one to work on meanwhile
        self._unread = UnreadStep(number, keys, terms, len(images) * self.job.process.world)

    def _read_terms(self) -> None:
        """Take in the last step's loss terms.

        Raises:
            TrainingError: the loss wasn't finite. No checkpoint was written since; each reads
                first.
        """
        if self._unread is None:
            return
        unread, self._unread = self._unread, None
        means = unread.read(self.job.dataset, self.schedule.steps)
        for name, value in means.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value
        self.progress.step(unread.images, means)

    def _end_epoch(self) -> None:
        """Row of the history, maybe a validation, and a checkpoint."""
        self._read_terms()
        state, params = self.state, self.params
        number = state.epoch + 1
        means = {f"train/{name}": value / self.schedule.steps for name, value in state.sums.items()}
        row: dict[str, Any] = {"epoch": number, "train/loss": sum(means.values()), **means}
        row["lr/head"] = self.schedule.head(number * self.schedule.steps - 1)
        row["lr/trunk"] = self.schedule.trunk(number * self.schedule.steps - 1)
        asked = params.validate_every and number % params.validate_every == 0
        if asked and self.job.validate is not None:
            found = self._figures(self.job.validate, state.result())
            row |= {f"val/{name}": value for name, value in found.items()}
            if params.early_stop is not None:
                state.remember_best(found["map"])
        state.history.append(row)
        state.sums, state.step, state.epoch = {}, 0, number
        self.curves.add(row)
        self.progress.epoch(number, params.epochs, row)
        self._save()

    def _save(self) -> None:
        self._read_terms()
        if self.first and self.job.scratch is not None:
            self.job.check_images()
            self.checkpoints.save(
                self.state.epoch * self.schedule.steps + self.state.step, self.state.dump()
            )

    def _figures(self, measure: MeasureDetector, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """What is measured of other tensors than the model's own, which it gets back afterwards."""
        found: dict[str, float] = {}
        if self.first:
            model = self.state.model
            own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(tensors)
            self.detector.eval()
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                found = {
                    name: float(value)
                    for name, value in measure(self.detector).items()
                    if value is not None
                }
            model.load_state_dict(own)
        result: dict[str, float] = broadcast_from_rank0(found, self.job.process)
        return result

    def _interpolate(self) -> Interpolation:
        """Choose how far the result goes from the pretrained detector, and put the model there."""
        state, masks = self.state, self.protection.masks
        end = {name: tensor.clone() for name, tensor in (state.best or state.result()).items()}
        start = {name: tensor.to(self.device.device) for name, tensor in self.start.items()}
        validate = self._of_tensors(self.job.validate) if state.history else None
        measure_kept = self._of_tensors(self.job.measure_kept) if state.history else None
        choice = choose(self.detector, start, end, masks, self.params, validate, measure_kept)
        state.model.load_state_dict(interpolate(start, end, choice.kept.alpha, masks))
        for line in choice.messages:
            self.progress.message(line)
        state.notes.extend(choice.notes)
        return choice.kept

    def _of_tensors(self, measure: MeasureDetector | None) -> MeasureTensors | None:
        if measure is None:
            return None
        return lambda tensors: self._figures(measure, tensors)

    def _outcome(self, chosen: Interpolation) -> Outcome:
        job, params, state = self.job, self.params, self.state
        images = {"train": job.train, "replay": self._replays()}
        return Outcome(
            fine_tuned(job.weights, self.detector, state, chosen, params.seed),
            run_record(params, self.device, self.schedule, state, chosen, images),
        )
