"""Two branches on one stock: kept classes as the pretrained detector finds them, bit for bit, new
ones from a trained copy of its upper part.

    image -> lower trunk (shared, frozen, once) -+-> upper trunk, head of the stock -> kept classes
                                                 +-> upper trunk, head of a scion   -> new classes

Stock and scion are whole detectors of one builder. In a scion, the modules below its cut are
`Identity`: it starts from what the stock's have computed. Each branch runs the detector's own
forward, with its own softmax, suppression and cap of detections; so nothing here knows how a family
scores or suppresses. A cut is proved before it's used: the trunk, taken apart there, gives the same
bits as the whole one.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.rpn import RegionProposalNetwork

from topwork.classes import label_of
from topwork.detectors.families import Detections, Family, Limits, feature_maps
from topwork.errors import SurgeryError
from topwork.weights.format import Branches

FREE_BLOCKS = 3
"""Blocks below the finest feature map of the head that are the scion's own under `auto`: measured,
new-class AP falls by a third where that map is shared (docs/keeping.md).
"""
LOGITS = "cls_logits"
MOST_PROPOSALS = 300
"""Of a two-stage scion in evaluation: the box head's work grows with them (torchvision's 1000).
"""
_PROBE_SIDE = 64
_CONTAINERS = (nn.Sequential, nn.ModuleList, IntermediateLayerGetter)


class Branched(nn.Module):
    """A stock and its scions, called like one detector.

    In evaluation it gives merged detections, best first: kept classes from the stock, learned ones
    from the scion that learned them. In training it gives the last scion's losses; the stock and
    earlier scions stay in evaluation mode and don't learn.

    Args:
        stock: the pretrained detector.
        scions: detectors of the same builder, without modules below their cuts (`without_lower`).
        family: of all of them.
        columns: names of the labels that are given out, background first.
        branches: which class comes from which branch, and where the cuts are.
    """

    def __init__(
        self,
        stock: nn.Module,
        scions: Sequence[nn.Module],
        family: Family,
        columns: Sequence[str],
        branches: Branches,
    ) -> None:
        super().__init__()
        self.stock = stock
        self.scions = nn.ModuleList(scions)
        self.columns, self.branches = tuple(columns), branches
        self.family = replace(family, limits=family.limits and _of_the_stock(family.limits))
        labels, known = label_of(columns), label_of((*branches.columns, *branches.absorbed))
        self._kept = [(known[source], labels[name]) for name, source in branches.kept.items()]
        self._learned = [
            [(scion.columns.index(name), labels[name]) for name in scion.learned]
            for scion in branches.scions
        ]
        self._lower = [lower_modules(stock, family, scion.cut) for scion in branches.scions]
        self._shared = max(self._lower, key=lambda paths: len(paths), default=[])
        self.stock.requires_grad_(False)
        self.scions[:-1].requires_grad_(False)
        self.eval()

    @property
    def scion(self) -> nn.Module:
        """The last scion: the one that learns."""
        return self.scions[-1]

    def train(self, mode: bool = True) -> "Branched":
        """Training mode for the last scion; never for what is kept exactly."""
        super().train(mode)
        self.stock.eval()
        self.scions[:-1].eval()
        return self

    def first_module(self) -> nn.Module:
        """The module that takes the pixels in training: the stock's first, or the whole trunk of a
        scion that shares nothing.
        """
        if self._lower[-1]:
            return self.stock.get_submodule(self._lower[-1][0])
        return self.family.module(self.scion, self.family.backbone)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> "Detections | dict[str, Tensor]":
        """Images float[3, H, W] in [0, 1] -> detections; in training losses by name."""
        if self.scion.training:
            return self._losses(images, targets)
        pixels, _ = self.family.module(self.stock, self.family.transform)(images, None)
        given, lowered = self._lowered(pixels.tensors)
        trunk = self.family.module(self.stock, self.family.backbone)
        below = [_inside(path, self.family.backbone) for path in self._shared]
        features = with_modules(trunk, dict.fromkeys(below, nn.Identity()))(given)
        own = [
            self.family.module(scion, self.family.backbone)(start)
            for scion, start in zip(self.scions, lowered, strict=True)
        ]
        stock = self._mounted(self.stock, pixels, None, features)
        scions = [
            self._mounted(scion, pixels, None, maps)
            for scion, maps in zip(self.scions, own, strict=True)
        ]
        if self.branches.mix:
            stock, scions[0] = self._mixed(stock, scions[0], features, own[0])
        found = [(stock(images), self._kept)]
        found += [(scion(images), self._learned[index]) for index, scion in enumerate(scions)]
        return [
            _merged([(detections[index], labels) for detections, labels in found])
            for index in range(len(images))
        ]

    def _losses(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> dict[str, Tensor]:
        pixels, resized = self.family.module(self.scion, self.family.transform)(images, targets)
        start = self.below_cut(pixels.tensors)
        features = self.family.module(self.scion, self.family.backbone)(start)
        losses: dict[str, Tensor] = self._mounted(self.scion, pixels, resized, features)(
            images, targets
        )
        return losses

    def below_cut(self, pixels: Tensor) -> Tensor:
        """What the scion that learns starts from: resized pixels float[N, 3, H, W] -> what the
        lower trunk gives at its cut. It never changes while the scion learns.
        """
        for path in self._lower[-1]:
            pixels = self.stock.get_submodule(path)(pixels)
        return pixels

    def _lowered(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the lower trunk gives at the highest cut, and a copy of what it gives at each
        scion's: the module above may work in place. Each module runs once.
        """
        starts = {index: pixels.clone() for index, below in enumerate(self._lower) if not below}
        for number, path in enumerate(self._shared, start=1):
            pixels = self.stock.get_submodule(path)(pixels)
            for index, below in enumerate(self._lower):
                if len(below) == number:
                    starts[index] = pixels.clone()
        return pixels, [starts[index] for index in range(len(self._lower))]

    def _mounted(self, detector: nn.Module, pixels: Any, targets: Any, features: Any) -> nn.Module:
        """The detector with its resized images and its features already given."""
        family = self.family
        transform = family.module(detector, family.transform)
        trunk = family.module(detector, family.backbone)
        return with_modules(
            detector,
            {
                family.transform: _given(transform, (pixels, targets)),
                family.backbone: _given(trunk, features),
            },
        )

    def _mixed(
        self, stock: nn.Module, scion: nn.Module, features: Any, own: Any
    ) -> tuple[nn.Module, nn.Module]:
        """The stock with a head that gives the mean of both branches, the scion's share being
        `mix`: probabilities of kept classes (the scion's others count as background) and box
        deltas. And the scion, its head run already.
        """
        path = head_path(self.family)
        heads = [detector.get_submodule(path) for detector in (stock, scion)]
        ours, theirs = (
            head(list(feature_maps(self.family, maps).values()))
            for head, maps in zip(heads, (features, own), strict=True)
        )
        columns, share = self.branches.scions[0].columns, self.branches.mix
        known = (*self.branches.columns, *self.branches.absorbed)
        places = [
            (known.index(source), columns.index(name))
            for name, source in self.branches.kept.items()
            if name in columns
        ]
        mean = {
            name: torch.lerp(ours[name], theirs[name], share) for name in ours if name != LOGITS
        }
        mean[LOGITS] = _mean_logits(
            ours[LOGITS], theirs[LOGITS], places, share, softmax=self.family.fold is not None
        )
        return (
            with_modules(stock, {path: _given(heads[0], mean)}),
            with_modules(scion, {path: _given(heads[1], theirs)}),
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """Answer of TorchScript's compiler.

        Raises:
            SurgeryError: always.
        """
        raise SurgeryError(
            "torch.jit.script: two branches run each detector's own forward on features computed"
            " once, in modules put together at each call, which TorchScript can't express. Export"
            " ONNX (`topwork export`), or script `model.stock`, which is the pretrained detector."
        )


def _of_the_stock(limits: Callable[[Any], Limits]) -> Callable[[Any], Limits]:
    """Where the stock cuts its detections off; the scions, copies of it, do so alike."""
    return lambda model: limits(model.stock)


def _mean_logits(
    stock: Tensor, scion: Tensor, places: Sequence[tuple[int, int]], share: float, *, softmax: bool
) -> Tensor:
    """Logits of the stock's columns whose probabilities are the branches' mean.

    Args:
        stock: float[N, A, columns].
        scion: float[N, A, columns of the scion].
        places: (stock's column, scion's column) of kept classes.
        share: the scion's.
        softmax: whether columns compete; in the scion's distribution all that isn't kept then is
            background.
    """
    moved = torch.zeros(scion.shape[-1], stock.shape[-1], device=scion.device)
    if softmax:
        moved[:, 0] = 1.0
    for ours, theirs in places:
        moved[theirs] = 0.0
        moved[theirs, ours] = 1.0
    if softmax:
        chances = torch.lerp(stock.float().softmax(-1), scion.float().softmax(-1) @ moved, share)
        return chances.clamp_min(torch.finfo(torch.float32).tiny).log()
    shares = share * moved.sum(0)
    own = stock.float().sigmoid()
    chances = own + shares * (scion.float().sigmoid() @ moved - own)
    return torch.logit(chances, eps=torch.finfo(torch.float32).tiny)


def _merged(
    parts: Sequence[tuple[dict[str, Tensor], Sequence[tuple[int, int]]]],
) -> dict[str, Tensor]:
    """One image's detections from several branches, best first; each branch's own order stays."""
    chosen: list[tuple[dict[str, Tensor], Tensor, int]] = []
    for found, labels in parts:
        for own, given_out in labels:
            chosen.append((found, torch.where(found["labels"] == own)[0], given_out))
    merged = {
        name: torch.cat([found[name][rows] for found, rows, _ in chosen])
        for name in parts[0][0]
        if name != "labels"
    }
    merged["labels"] = torch.cat(
        [torch.full_like(found["labels"][rows], label) for found, rows, label in chosen]
    )
    scores = merged["scores"]
    if torch.onnx.is_in_onnx_export():  # it knows no stable sort; ONNX's own is stable
        order = scores.sort(descending=True)[1]
    else:
        order = scores.sort(descending=True, stable=True)[1]
    return {name: merged[name][order] for name in ("boxes", "labels", "scores", *merged)}


def head_path(family: Family) -> str:
    """Path of the module that holds the score head and the box head of a one-stage detector.

    Raises:
        SurgeryError: the family has none.
    """
    path = str(family.score_head or "").rpartition(".")[0]
    if not path or family.two_stage is not None:
        raise SurgeryError(
            f"mix: family {family.name!r} scores no anchors that both branches have in common; it"
            " needs a one-stage detector as torchvision's are. Write `kept: exact`."
        )
    return path


def with_modules(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy of a module with others at some paths inside; all else is shared, and the
    module itself isn't changed.
    """
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    inner: dict[str, dict[str, nn.Module]] = {}
    for path, other in replaced.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = other
        else:
            shell._modules[name] = other
    for name, others in inner.items():
        shell._modules[name] = with_modules(module.get_submodule(name), others)
    return shell


def _given(module: nn.Module, value: Any) -> nn.Module:
    """A shallow copy of a module whose forward gives a value that was computed before."""
    shell = copy.copy(module)
    shell.forward = lambda *_, **__: value
    return shell


def without_lower(detector: nn.Module, family: Family, cut: str | None) -> nn.Module:
    """The detector with `Identity` in the place of all modules up to the cut, in place."""
    for path in lower_modules(detector, family, cut):
        parent, _, name = path.rpartition(".")
        setattr(detector.get_submodule(parent), name, nn.Identity())
    return detector


def limit_proposals(detector: nn.Module, family: Family) -> None:
    """Let a two-stage scion look at no more than MOST_PROPOSALS regions an image, in place; other
    detectors, and proposal networks that aren't torchvision's, are left as they are.
    """
    rpn = family.two_stage and detector.get_submodule(family.two_stage.rpn_head.rpartition(".")[0])
    if isinstance(rpn, RegionProposalNetwork):
        most = rpn._post_nms_top_n
        rpn._post_nms_top_n = {**most, "testing": min(most["testing"], MOST_PROPOSALS)}


def trunk_blocks(detector: nn.Module, family: Family) -> list[str]:
    """Paths of the trunk's blocks, in the order in which they are registered; lists of blocks are
    looked into, blocks aren't.
    """

    def listed(module: nn.Module, path: str) -> Iterator[str]:
        for name, child in module.named_children():
            place = f"{path}.{name}"
            # a subclass is a block: torchvision's Conv2dNormActivation is a Sequential
            if type(child) in _CONTAINERS:
                yield from listed(child, place)
            else:
                yield place

    return list(listed(family.module(detector, family.backbone), family.backbone))


def lower_modules(detector: nn.Module, family: Family, cut: str | None) -> list[str]:
    """Paths of the blocks up to the cut, the cut's included.

    Raises:
        SurgeryError: the trunk has no such module.
    """
    if cut is None:
        return []
    blocks = trunk_blocks(detector, family)
    inside = [index for index, path in enumerate(blocks) if f"{path}.".startswith(f"{cut}.")]
    if not inside:
        raise SurgeryError(
            f"cut {cut!r}: no block of the trunk; it has {', '.join(blocks)}. Write one of these"
            " (the last that both branches share), `auto` or `none`."
        )
    return blocks[: inside[-1] + 1]


def _inside(path: str, parent: str) -> str:
    return path.removeprefix(f"{parent}.")


def choose_cut(detector: nn.Module, family: Family, cut: str) -> str | None:
    """The last module that stock and scion share, proved.

    Args:
        detector: the pretrained detector, in evaluation mode.
        family: its family.
        cut: a module of the trunk; `auto` (FREE_BLOCKS blocks with weights below the finest feature
            map, or fewer in a short trunk; nothing where the trunk can't be taken apart); or
            `none`.

    Raises:
        SurgeryError: the trunk can't be taken apart there.

    Example:
        >>> choose_cut(ssdlite320_mobilenet_v3_large(num_classes=91), family, "auto")
        'backbone.features.0.10'
    """
    if cut == "none":
        return None
    blocks = trunk_blocks(detector, family)
    probe = _Probe(detector, family)
    if cut != "auto":
        last = len(lower_modules(detector, family, cut)) - 1
        if not probe.gives_the_same(blocks[: last + 1]):
            raise SurgeryError(
                f"cut {cut!r}: the trunk gives other features when it's taken apart there (a map"
                " that the head takes, or a shortcut, begins below it). Write a module further"
                " down, `auto` or `none`."
            )
        return cut
    low, high = 0, len(blocks)  # blocks[:low] can be shared
    while low < high:
        middle = (low + high + 1) // 2
        if probe.gives_the_same(blocks[:middle]):
            low = middle
        else:
            high = middle - 1
    weighty = [
        index
        for index, path in enumerate(blocks[:low])
        if any(parameter.dim() > 1 for parameter in detector.get_submodule(path).parameters())
    ]
    if len(weighty) < 2:
        return None
    free = weighty[-min(FREE_BLOCKS, len(weighty) - 1)]
    return blocks[free - 1]


class _Probe:
    """Compares a whole trunk's features with those of the trunk taken apart."""

    def __init__(self, detector: nn.Module, family: Family) -> None:
        self.detector, self.family = detector, family
        size = family.input_size(detector) if family.input_size else None
        height, width = size or (_PROBE_SIDE, _PROBE_SIDE)
        like = next(detector.parameters())
        self.pixels = torch.rand(
            1, 3, height, width, generator=torch.Generator().manual_seed(0)
        ).to(like)
        self.trunk = family.module(detector, family.backbone)
        with torch.no_grad():
            self.whole = feature_maps(family, self.trunk(self.pixels))

    @torch.no_grad()
    def gives_the_same(self, lower: Sequence[str]) -> bool:
        """Whether the trunk gives the same bits with these blocks run one after the other first."""
        lowered = self.pixels
        try:
            for path in lower:
                lowered = self.detector.get_submodule(path)(lowered)
            inside = [_inside(path, self.family.backbone) for path in lower]
            upper = with_modules(self.trunk, dict.fromkeys(inside, nn.Identity()))
            found = feature_maps(self.family, upper(lowered))
        except (RuntimeError, TypeError, AttributeError, IndexError, SurgeryError):
            return False  # blocks that don't follow each other can't be put together
        return list(found) == list(self.whole) and all(
            torch.equal(found[name], self.whole[name]) for name in found
        )
