"""Builders: from a name to a detector, with its absorbed columns folded in.

A builder is torchvision's name (`ssdlite320_mobilenet_v3_large`), `module:function`,
`path/to/file.py:function`, or the function itself. It is called with `num_classes`, which counts
the background column, and makes random weights; nothing is downloaded.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from topwork.detectors.branches import Branched, limit_proposals, without_lower
from topwork.detectors.families import Family, family_of
from topwork.errors import SurgeryError
from topwork.weights.branches import scion_weights, stock_weights
from topwork.weights.builder_files import BUILDER_HASH, builder_files, builder_hash, look_here
from topwork.weights.fit import check_fit
from topwork.weights.format import Branches, Weights, read_weights

# A key of builder_args for torchvision's builders: its COCO weights of some detectors were trained
# with frozen batch norms, of this epsilon, which torchvision puts in only when it downloads the
# weights itself.
FROZEN_BATCH_NORM = "frozen_batch_norm"

Builder = str | Callable[..., nn.Module]


def torchvision_builders() -> list[str]:
    """Names of torchvision's detection builders."""
    return list(models.list_models(module=detection))


def builder_name(builder: Builder) -> str:
    """A builder as text: torchvision's own name, or `module:function`."""
    if isinstance(builder, str):
        return builder
    name = getattr(builder, "__qualname__", type(builder).__name__)
    module = getattr(builder, "__module__", "")
    return name if module.startswith("torchvision.models.detection") else f"{module}:{name}"


def resolve(builder: Builder) -> Callable[..., nn.Module]:
    """The function behind a builder's name.

    Raises:
        SurgeryError: no such torchvision builder, module, file or function.
    """
    if not isinstance(builder, str):
        return builder
    if ":" not in builder:
        if builder not in torchvision_builders():
            raise SurgeryError(
                f"builder {builder!r}: not one of torchvision's detection builders"
                f" ({', '.join(torchvision_builders())}). Write one of these, `module:function`, or"
                " `path/to/file.py:function`."
            )
        function: Callable[..., nn.Module] = models.get_model_builder(builder)
        return function
    place, _, name = builder.rpartition(":")
    look_here()
    try:
        module = (
            _module_of_file(Path(place))
            if place.endswith(".py")
            else importlib.import_module(place)
        )
    except Exception as error:
        raise SurgeryError(
            f"builder {builder!r}: {place} can't be imported ({type(error).__name__}: {error})."
            " Mend it, or fetch.builder."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        offered = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise SurgeryError(
            f"builder {builder!r}: {place} has no function {name!r}; it has:"
            f" {', '.join(offered) or 'none'}. Mend fetch.builder."
        )
    return found  # type: ignore[no-any-return]


def _module_of_file(path: Path) -> Any:
    """Import a Python file under a name made from its path, once."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    name = "topwork_builder_" + "".join(c if c.isalnum() else "_" for c in str(path.resolve()))
    stamp = path.stat().st_mtime_ns
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "_topwork_stamp", None) == stamp:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module._topwork_stamp = stamp  # type: ignore[attr-defined]
    return module


def build(
    builder: Builder,
    num_classes: int,
    builder_args: Mapping[str, Any] | None = None,
    absorbed: int = 0,
) -> nn.Module:
    """Build a detector with random weights; nothing is downloaded.

    Args:
        builder: name or function, see the module's text.
        num_classes: columns that the detector's users see, background included.
        builder_args: further keyword arguments of the builder.
        absorbed: further columns of the score head, frozen by training, folded into background
            inside the head.

    Raises:
        SurgeryError: the builder can't be found or fails, or its head can't absorb.
    """
    model = _plain(builder, num_classes + absorbed, builder_args or {})
    if absorbed:
        absorb_columns(
            model, family_of(model, resolve(builder)), num_classes, builder_name(builder)
        )
    return model


def _plain(builder: Builder, num_classes: int, builder_args: Mapping[str, Any]) -> nn.Module:
    function = resolve(builder)
    arguments = dict(builder_args)
    ours = getattr(function, "__module__", "").startswith("torchvision.models.detection")
    frozen_eps = arguments.pop(FROZEN_BATCH_NORM, None) if ours else None
    if ours:
        arguments |= {"weights": None, "weights_backbone": None}
    try:
        model = function(num_classes=num_classes, **arguments)
        if frozen_eps is not None:
            _freeze_batch_norm(model.get_submodule("backbone"), float(frozen_eps))
    except Exception as error:
        raise SurgeryError(
            f"builder {builder_name(builder)}(num_classes={num_classes}, {dict(builder_args)}):"
            f" failed with {type(error).__name__}: {error}. Mend fetch.builder or"
            " fetch.builder_args in params.yaml."
        ) from error
    if not isinstance(model, nn.Module):
        raise SurgeryError(
            f"builder {builder_name(builder)}: returned {type(model).__name__}, expected a"
            " torch.nn.Module."
        )
    return model


def _freeze_batch_norm(module: nn.Module, eps: float) -> None:
    """Put frozen batch norms in the place of a module's batch norms, in place; the tensors keep
    their names, the step counters go.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_batch_norm(child, eps)


def absorb_columns(model: nn.Module, family: Family, columns: int, name: str) -> None:
    """Fold a freshly built, wide detector's columns from `columns` on into background, in place.

    The score head keeps its tensors and their names; a forward hook folds what it gives.
    Class-dependent layers that only a detected class needs (box deltas, masks) are cut to
    `columns`.

    Raises:
        SurgeryError: the family doesn't say where its logits are.
    """
    if family.score_head is None or family.fold is None:
        raise SurgeryError(
            f"builder {name}: its head can't absorb classes (no softmax head is declared for it)."
            " Write `dropped: remove`."
        )
    head: Any = model.get_submodule(family.score_head)
    head.num_target_columns = columns
    head.register_forward_hook(family.fold)
    for path, per_class in family.cut.items():
        try:
            layer: Any = model.get_submodule(path)
        except AttributeError:
            continue
        rows = columns * per_class
        for key in ("weight", "bias"):
            setattr(layer, key, nn.Parameter(getattr(layer, key).detach()[:rows].clone()))
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", rows)


class UninitializedParameters(TorchFunctionMode):
    """Skips the random initialization of parameters, which costs seconds and is about to be
    overwritten.

    Other tensors (such as a temporary of `orthogonal_`) and constants keep their numbers.
    """

    _SKIPPED = (
        Tensor.normal_,
        Tensor.uniform_,
        init.normal_,
        init.uniform_,
        init.kaiming_normal_,
        init.kaiming_uniform_,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._SKIPPED:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


def shapes_of(
    builder: Builder,
    num_classes: int,
    builder_args: Mapping[str, Any] | None = None,
    absorbed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the detector that a builder makes; built on the `meta` device, which
    holds no numbers.
    """
    with torch.device("meta"), UninitializedParameters():
        model = build(builder, num_classes, builder_args, absorbed)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_fits_builder(weights: Weights) -> None:
    """Hold the tensors against the detector that their builder makes for their columns.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named.
        SurgeryError: the builder can't be found, or fails.
    """
    if weights.branches is not None:
        load(weights, builder=weights.builder)
        return
    columns, absorbed = len(weights.columns), len(weights.absorbed)
    check_fit(weights, shapes_of(weights.builder, columns, weights.builder_args, absorbed))


def load(
    weights: Weights | str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    builder: Builder | None = None,
) -> nn.Module:
    """Load weights into their detector, ready to predict: evaluation mode, `model.columns` names
    the labels, `model.family` is the detector's family.

    Args:
        weights: a file that topwork wrote, or weights already read.
        device: where the detector goes.
        dtype: of all its floating-point tensors.
        builder: in place of the one that the weights name; needed where a file names one that is
            neither torchvision's nor the project's (`read_weights`).

    Raises:
        WeightsError: the file can't be read, names a builder that nobody vouched for, or its
            tensors don't fit the builder; all are named.
        SurgeryError: the builder can't be found, or its file changed since the weights were
            fetched.

    Example:
        model = topwork.load("out/finetune/weights.safetensors")
        boxes = model([image])[0]["boxes"]
    """
    if not isinstance(weights, Weights):
        weights = read_weights(Path(weights), trust=builder is not None)
    maker = builder or weights.builder
    if builder is None:
        _check_builder_file(weights)
    if weights.branches is not None:
        return _load_branched(weights, weights.branches, maker).to(device=device, dtype=dtype)
    with UninitializedParameters():
        model = build(maker, len(weights.columns), weights.builder_args, len(weights.absorbed))
    check_fit(weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict(weights.state_dict, strict=True)
    model.to(device=device, dtype=dtype).eval()
    model.columns = weights.columns  # type: ignore[assignment]
    model.family = family_of(model, resolve(maker))  # type: ignore[assignment]
    return model


def _load_branched(weights: Weights, branches: Branches, maker: Builder) -> nn.Module:
    """The stock and its scions, each in its own detector."""
    pretrained = load(stock_weights(weights), builder=maker)
    family = family_of(pretrained, resolve(maker))
    scions = []
    for number, scion in enumerate(branches.scions):
        with UninitializedParameters():
            model = build(maker, len(scion.columns), weights.builder_args, len(scion.absorbed))
        without_lower(model, family, scion.cut)
        limit_proposals(model, family)
        own = scion_weights(weights, number)
        check_fit(own, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        model.load_state_dict(own.state_dict, strict=True)
        scions.append(model)
    return Branched(pretrained, scions, family, weights.columns, branches)


def stock(
    weights: Weights | str | Path,
    device: str | torch.device = "cpu",
    *,
    builder: Builder | None = None,
) -> nn.Module:
    """The pretrained detector that a branched file holds, bit for bit, with all its classes.

    Raises:
        WeightsError: the file can't be read, or holds a single detector.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(Path(weights), trust=builder is not None)
    return load(stock_weights(weights), device, builder=builder)


def _check_builder_file(weights: Weights) -> None:
    """Compare a builder of one's own with what it was when the weights were fetched.

    Raises:
        SurgeryError: it changed.
    """
    expected = weights.provenance.get(BUILDER_HASH)
    found = builder_hash(weights.builder)
    if expected is None or found is None:
        return
    if found != expected:
        files = ", ".join(str(file) for file in builder_files(weights.builder))
        raise SurgeryError(
            f"builder {weights.builder!r}: its code ({files}) changed since the weights were"
            f" fetched (SHA-256 {found[:12]}, expected {expected[:12]}). Run `dvc repro`, so that"
            " every stage uses the new one; for a builder outside of the project `dvc repro --force"
            " fetch` first."
        )
