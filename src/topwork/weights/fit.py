"""Do tensors fit a detector? Every missing, extra and misshapen tensor is named, with a hint where
a wrapper's prefix explains it.
"""

from collections.abc import Mapping, Sequence

from topwork.errors import WeightsError
from topwork.weights.format import Weights

# A counter that batch norm adds and evaluation never reads; files of old PyTorch, and of frozen
# batch norm, lack it.
OPTIONAL_SUFFIX = ".num_batches_tracked"
KNOWN_PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "ema.",
    "ema_model.",
    "net.",
    "detector.",
    "student.",
)


def check_fit(weights: Weights, expected: Mapping[str, Sequence[int]]) -> None:
    """Compare weights with a detector's tensor shapes.

    Args:
        weights: what was fetched.
        expected: tensor name -> shape, of the detector that the builder makes.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named. Where a
            wrapper's prefix explains all of it, the message has that instead.
    """
    found = {name: tuple(tensor.shape) for name, tensor in weights.state_dict.items()}
    faults = _faults(found, expected)
    if not any(faults.values()):
        return
    where = f"{weights.provenance.get('source', 'weights')}: {len(found)} tensors"
    wanted = f"{weights.builder} with {len(weights.columns)} columns"
    prefix = prefix_hint(list(found)) or ""
    key = _joined(weights.provenance.get("prefix"), prefix)
    if not any(
        _faults(
            {name.removeprefix(prefix): shape for name, shape in found.items()}, expected
        ).values()
    ):
        raise WeightsError(
            f"{where} don't fit {wanted}. The names begin with {prefix!r}, and without it every"
            " tensor fits; nothing is stripped by default. If a wrapper put it there, write"
            f" `fetch.prefix: {key}`."
        )
    named = "; ".join(
        f"{len(names)} {kind}: {', '.join(names)}" for kind, names in faults.items() if names
    )
    raise WeightsError(
        f"{where} don't fit {wanted}. {named}.{_next_step(weights, expected, prefix, faults)}"
    )


def _joined(given: str | None, prefix: str) -> str:
    """The prefix that takes what `given` took and strips a further one."""
    if not given or not prefix:
        return prefix
    return f"{given}{prefix}" if given.endswith(".") else f"{given}/{prefix}"


def _faults(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> dict[str, list[str]]:
    """Kind of fault -> tensors with their shapes."""
    return {
        "missing": [
            f"{name} {list(shape)}"
            for name, shape in expected.items()
            if name not in found and not name.endswith(OPTIONAL_SUFFIX)
        ],
        "left over": [
            f"{name} {list(shape)}" for name, shape in found.items() if name not in expected
        ],
        "of another shape": [
            f"{name} (found {list(found[name])}, expected {list(shape)})"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }


def _next_step(
    weights: Weights,
    expected: Mapping[str, Sequence[int]],
    prefix: str,
    faults: Mapping[str, Sequence[str]],
) -> str:
    if prefix and faults["missing"]:
        return (
            f" The names begin with {prefix!r}: if a wrapper put it there, write `fetch.prefix:"
            f" {_joined(weights.provenance.get('prefix'), prefix)}`."
        )
    if faults["of another shape"] and not faults["missing"]:
        return (
            " The class columns are"
            f" {_fitting_columns(weights, expected) or 'probably another number'}, not"
            f" {len(weights.columns)}: mend fetch.classes, or fetch.builder_args."
        )
    return " Mend fetch.builder, fetch.builder_args or fetch.classes in params.yaml."


def _fitting_columns(weights: Weights, expected: Mapping[str, Sequence[int]]) -> int | None:
    """The one number of columns that explains every misshapen tensor, where there is one;
    background may be without rows.
    """
    columns = len(weights.columns)
    for rowless in (0, 1):
        counts = {
            (columns - rowless) * found / wanted + rowless
            for name, shape in expected.items()
            if name in weights.state_dict
            for found, wanted in zip(weights.state_dict[name].shape, shape, strict=False)
            if found != wanted and wanted
        }
        if len(counts) == 1 and (count := counts.pop()).is_integer():
            return int(count)
    return None


def prefix_hint(names: list[str]) -> str | None:
    """The wrapper prefix (`module.`, `_orig_mod.`...) that most tensor names share, chained where
    wrappers are nested; None without one.
    """
    chain = ""
    while True:
        rest = [name.removeprefix(chain) for name in names if name.startswith(chain)]
        step = next(
            (
                p
                for p in KNOWN_PREFIXES
                if sum(name.startswith(p) for name in rest) > 0.5 * len(names)
            ),
            None,
        )
        if step is None:
            return chain or None
        chain += step
