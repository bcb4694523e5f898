"""Fine-tuning: the whole loop in sight, in plain PyTorch.

    for each epoch: for each batch: losses, backward, protect rows, step; checkpoint; now and then
        validate
    at the end: interpolate between the grafted and the fine-tuned weights

The bits of the result depend on the job and the machine's kind alone: order, augmentation and every
other draw are decided by keys (seed, what, epoch, step), so that a run that was killed and started
again ends like one that wasn't.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topwork.detectors.axes import head_spec_of
from topwork.detectors.branches import Branched
from topwork.detectors.builders import load
from topwork.errors import TrainingError
from topwork.params.finetune import FinetuneParams
from topwork.params.runtime import RuntimeParams
from topwork.project.finetune import Determinism, Interpolation, RunRecord
from topwork.training.batches import ProcessRank, epoch_batches, loader
from topwork.training.checkpoint import Checkpoints
from topwork.training.curves import Curves
from topwork.training.dataset import DetectionDataset, Key, Target
from topwork.training.device import Device, determinism, exactness, loader_processes, machine
from topwork.training.distillation import Teacher
from topwork.training.distributed import broadcast_from_rank0, mean_over_processes, wrap
from topwork.training.features import FeatureBank
from topwork.training.frozen_norm import fold_frozen_norms
from topwork.training.interpolation import MeasureTensors, choose, interpolate
from topwork.training.measuring import MeasureDetector
from topwork.training.objective import Objective
from topwork.training.progress import RunProgress
from topwork.training.protection import Protection, row_masks
from topwork.training.roi_pool import replace_pool_gradient
from topwork.training.schedule import Schedule
from topwork.training.seeds import seed_of
from topwork.training.state import State
from topwork.training.step_terms import StepTerms
from topwork.training.versions import installed_versions
from topwork.weights.branches import learning_weights, with_learned
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


@dataclass(frozen=True)
class Outcome:
    """What training ends with: the weights, and the record of how (no clock time in it)."""

    weights: Weights
    record: RunRecord


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
        self.spec = head_spec_of(learning)
        self.family = self.spec.family
        self.start = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in learning.state_dict.items()
        }
        masks = row_masks(learning, job.kept, self.spec)
        self.protection = Protection(params, masks, self.family.trunk).to(device.device)
        self.detector = self._detector()
        model = _learning(self.detector)
        self.teacher = None if self.branched else self._teacher(model)
        self.objective = Objective(self.detector, params, self.teacher)
        self.schedule = Schedule(params, len(self._batches(0)))
        scaler = torch.amp.GradScaler(device.device.type, enabled=device.scaled)
        self.state = State(
            model,
            self.protection.optimizer(model, fused=self._fused()),
            scaler,
            accumulate=params.accumulate,
        )
        self._unread: _Unread | None = None
        self.state.notes += job.notes
        if params.distill and self.teacher is None and not self.branched:
            self.state.notes.append(self._why_no_teacher())
        unprotected = self.teacher is None and not self.branched and not self._replays()
        if job.kept and params.trunk_lr and unprotected:
            self.state.notes.append(
                f"{', '.join(job.kept)} may be forgotten: no images to replay (dataset.replay) and"
                " no distillation (finetune.distill)"
            )

    def _detector(self) -> nn.Module:
        """The grafted detector on the device, in the memory layout that its convolutions like
        best.
        """
        model = load(self.job.weights, self.device.device)
        model.to(memory_format=torch.channels_last)
        if self.params.freeze_batch_norm:
            fold_frozen_norms(model)
        if self.params.deterministic or not self.device.on_gpu:
            replace_pool_gradient(model, self.family)
        trunk = dict(_learning(model).named_modules()).get(self.family.backbone)
        if trunk is not None:
            trunk.register_forward_pre_hook(_channels_last)
            if self.params.compile:
                trunk.compile()
        if isinstance(model, Branched):
            model.first_module().register_forward_pre_hook(_channels_last)
        return model

    def _teacher(self, model: nn.Module) -> Teacher | None:
        pretrained = [c for c, name in enumerate(self.job.weights.columns) if name in self.job.kept]
        pretrained += range(
            len(self.job.weights.columns),
            len(self.job.weights.columns) + len(self.job.weights.absorbed),
        )
        if not self.params.distill or not pretrained or self.family.missing_for_distillation():
            return None
        columns = [0, *pretrained] if self.spec.softmax else pretrained
        data = self.job.dataset
        variants = len(data) * data.variants if data.steady else 0
        return Teacher(
            self._detector(),
            model,
            self.family,
            columns,
            self.spec.softmax,
            variants=variants,
            memory_mib=self.params.feature_cache_mib,
        )

    def _why_no_teacher(self) -> str:
        """The note of a run that should distill and can't."""
        if missing := self.family.missing_for_distillation():
            return (
                f"distillation left out: the detector's family {self.family.name!r} doesn't declare"
                f" {', '.join(missing)} (docs/surgery.md)"
            )
        return "distillation left out: no class is kept and none is absorbed"

    def _fused(self) -> bool:
        return not self.device.scaled or self.device.device.type == "cuda"

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
            with _stop_after_step() as stop_requested:
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
        try:
            while state.epoch < params.epochs and not self._stopped_early():
                thawed = state.epoch >= params.head_epochs and params.trunk_lr > 0
                state.model.train()
                self.protection.freeze(state.model, trunk=thawed)
                self.objective.bank = bank = None if thawed else self._bank()
                module = wrap(self.objective, self.job.process, self.device.device)
                until = self._next_thaw()
                if bank is not None:
                    stream = self._banked(bank, until)
                else:
                    stream = loaded = loaded or self._stream()
                while state.epoch < until and not self._stopped_early():
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
        """The frozen trunk's features, where keeping them pays."""
        if self.branched:
            return None
        bank, message = FeatureBank.where_it_pays(
            self.state.model, self.family, self.job.dataset, self.device, self.params
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

    def _stream(self) -> Iterator[Batch]:
        """Batches from where the run stands to its end, with their keys."""
        state = self.state
        batches = [
            batch
            for epoch in range(state.epoch, self.params.epochs)
            for batch in self._batches(epoch)
        ][state.step :]
        if not batches:
            return iter(())
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
        state = self.state
        batches = [batch for epoch in range(state.epoch, until) for batch in self._batches(epoch)][
            state.step :
        ]
        self.job.dataset.preload()
        return ((batch, bank.targets(batch)) for batch in batches)

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
                terms = self._gradients(module, keys, images, targets)
                break
            except torch.OutOfMemoryError as error:
                self._take_less_memory(len(images), error)
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
        self._unread = _Unread(number, keys, terms, len(images) * self.job.process.world)

    def _read_terms(self) -> None:
        """Take in the last step's loss terms.

        Raises:
            TrainingError: the loss wasn't finite. No checkpoint was written since; each reads
                first.
        """
        if self._unread is None:
            return
        unread, self._unread = self._unread, None
        means = unread.terms.means()
        if bad := unread.terms.first_not_finite():
            self._refuse(unread, *bad)
        for name, value in means.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value
        self.progress.step(unread.images, means)

    def _gradients(
        self, module: nn.Module, keys: list[Key], images: list[Tensor], targets: list[Target]
    ) -> StepTerms:
        """Add up the micro-batches' gradients; returns the loss terms of the step."""
        size = math.ceil(len(images) / self.state.accumulate)
        means: dict[str, Tensor] = {}
        found = []
        for start in range(0, len(images), size):
            micro_batch = slice(start, start + size)
            weight = len(images[micro_batch]) / len(images)
            last = start + size >= len(images)
            with nullcontext() if last or self.job.process.world == 1 else module.no_sync():  # type: ignore[operator]
                with self.device.autocast():
                    terms = module(
                        self.device.to(images[micro_batch]), self.device.to(targets[micro_batch])
                    )
                    total = torch.stack([term.float() for term in terms.values()]).sum() * weight
                self.state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            terms = {name: term.detach().float() for name, term in terms.items()}
            found.append(torch.stack(list(terms.values())))
            means = {name: means.get(name, 0.0) + term * weight for name, term in terms.items()}
        return StepTerms.of(mean_over_processes(means, self.job.process), found)

    def _refuse(self, unread: "_Unread", micro_batch: int, terms: Mapping[str, float]) -> None:
        size = math.ceil(len(unread.keys) / (len(unread.terms.values) - 1))
        keys = unread.keys[micro_batch * size : (micro_batch + 1) * size]
        images = ", ".join(self.job.dataset.name(index) for _, index in keys)
        values = ", ".join(f"{name} {value}" for name, value in terms.items())
        epoch, step = divmod(unread.number, self.schedule.steps)
        raise TrainingError(
            f"finetune: the loss isn't finite at epoch {epoch + 1}, step {step + 1}: {values};"
            f" images: {images}. Lower finetune.lr or finetune.clip_norm, or look at these images'"
            " boxes (topwork validate)."
        )

    def _take_less_memory(self, images: int, error: Exception) -> None:
        """Halve the micro-batch, or give up where it's one image already."""
        state = self.state
        if self.job.process.world > 1 or state.accumulate >= images:
            raise TrainingError(
                f"finetune: out of memory with {math.ceil(images / state.accumulate)} images at a"
                f" time on {self.device.device} ({error}). Lower finetune.batch_size, raise"
                " finetune.accumulate, or choose a smaller detector."
            ) from error
        state.optimizer.zero_grad(set_to_none=True)
        if self.device.device.type == "cuda":
            torch.cuda.empty_cache()
        state.accumulate = min(state.accumulate * 2, images)
        note = (
            f"out of memory at epoch {state.epoch + 1}, step {state.step + 1}: from there on each"
            f" step is made of {state.accumulate} micro-batches"
        )
        state.notes.append(note)
        self.progress.message(note)

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
            self._remember_best(found["map"])
        state.history.append(row)
        state.sums, state.step, state.epoch = {}, 0, number
        self.curves.add(row)
        self.progress.epoch(number, params.epochs, row)
        self._save()

    def _remember_best(self, found: float) -> None:
        state = self.state
        if self.params.early_stop is None:
            return
        if found > state.best_map:
            state.best, state.best_map, state.stale = (
                {name: tensor.clone() for name, tensor in state.result().items()},
                found,
                0,
            )
        else:
            state.stale += 1

    def _stopped_early(self) -> bool:
        return self.params.early_stop is not None and self.state.stale >= self.params.early_stop

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
        for line in choice.told:
            self.progress.message(line)
        state.notes.extend(choice.notes)
        return choice.kept

    def _of_tensors(self, measure: MeasureDetector | None) -> MeasureTensors | None:
        if measure is None:
            return None
        return lambda tensors: self._figures(measure, tensors)

    def _outcome(self, chosen: Interpolation) -> Outcome:
        level, reasons = determinism(self.params, self.device)
        state, weights = self.state, self.job.weights
        record = RunRecord(
            determinism=Determinism(level=level, reasons=tuple(reasons)),
            machine=machine(self.params, self.device),
            versions=installed_versions(),
            epochs=len(state.history),
            steps=len(state.history) * self.schedule.steps,
            stopped_early=self._stopped_early(),
            interpolation=chosen,
            accumulate=state.accumulate,
            images={"train": self.job.train, "replay": self._replays()},
            history=tuple(state.history),
            notes=tuple(state.notes),
        )
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in state.model.state_dict().items()
        }
        provenance = {
            **weights.provenance,
            # `share` is alpha: the key stands in weights files, whose bytes stay the same
            "finetune": {
                "share": chosen.alpha,
                "epochs": len(state.history),
                "seed": self.params.seed,
            },
        }
        return Outcome(
            replace(
                weights,
                state_dict=with_learned(weights, tensors),
                builder_args=dict(weights.builder_args),
                provenance=provenance,
                branches=self.detector.branches if isinstance(self.detector, Branched) else None,
            ),
            record,
        )


@dataclass(frozen=True)
class _Unread:
    """A step whose loss terms nobody has read yet: its number, its images' keys and how many they
    are in all processes.
    """

    number: int
    keys: list[Key]
    terms: StepTerms
    images: int


def _learning(detector: nn.Module) -> nn.Module:
    """The part of a detector that learns."""
    return detector.scion if isinstance(detector, Branched) else detector


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


@contextmanager
def _stop_after_step() -> Iterator[threading.Event]:
    """Within the block SIGTERM requests a stop after the running step, with a checkpoint, instead
    of ending the process at once.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, before)
