"""Do tensors fit a detector? Every missing, extra and misshapen tensor is named, with a hint where a wrapper's prefix explains it."""

from collections.abc import Mapping, Sequence

from topwork.errors import WeightsError
from topwork.weights.load_raw import prefix_hint
from topwork.weights.weights import Weights

# A counter that batch norm adds and evaluation never reads; files of old PyTorch, and of frozen batch norm, lack it.
OPTIONAL_SUFFIX = ".num_batches_tracked"
SHOWN = 40


def check_fit(weights: Weights, expected: Mapping[str, Sequence[int]]) -> None:
    """Hold weights against a detector's tensor shapes.

    Args:
        weights: what was fetched.
        expected: tensor name -> shape, of the detector that the builder makes.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named (the first 40 of each kind).
    """
    found = {name: tuple(tensor.shape) for name, tensor in weights.state_dict.items()}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found and not name.endswith(OPTIONAL_SUFFIX)]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} (found {list(found[name])}, expected {list(shape)})"
        for name, shape in expected.items()
        if name in found and found[name] != tuple(shape)
    ]
    if not (missing or extra or misshapen):
        return
    parts = [
        f"{len(faults)} {kind}: {', '.join(faults[:SHOWN])}{', ...' if len(faults) > SHOWN else ''}"
        for kind, faults in (("missing", missing), ("left over", extra), ("of another shape", misshapen))
        if faults
    ]
    raise WeightsError(
        f"{weights.provenance.get('source', 'weights')}: {len(found)} tensors don't fit {weights.builder} with {len(weights.columns)} columns. "
        f"{'; '.join(parts)}.{_next_step(weights, missing, misshapen)}"
    )


def _next_step(weights: Weights, missing: Sequence[str], misshapen: Sequence[str]) -> str:
    prefix = prefix_hint(list(weights.state_dict))
    if prefix and missing:
        return f" The names begin with {prefix!r}: if a wrapper put it there, write `fetch.prefix: {prefix}`."
    if misshapen and not missing:
        return f" The class columns are probably another number than {len(weights.columns)}: mend fetch.classes, or fetch.builder_args."
    return " Mend fetch.builder, fetch.builder_args or fetch.classes in params.yaml."
