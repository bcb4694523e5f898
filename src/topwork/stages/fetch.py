"""Stage `fetch`: get the pretrained weights, whole, known and safe.

Reads params `fetch` and what they name (the demo, torchvision's enums, a URL, a local file, DVC, a hub), and weights.lock. Writes
out/fetch/pretrained.safetensors and out/fetch/provenance.json, and the hash of a source seen for the first time into weights.lock (which is
neither dep nor out of the stage: it is the project's memory, committed by hand). The outputs depend on the source's bytes, the params and
the versions of torch and torchvision, to the byte. Stopped by a hash that isn't the known one, a file that is more than tensors, NaN or
infinite values, and tensors that don't fit the builder.
"""

from pathlib import Path

from topwork.detectors.builders import shapes_of
from topwork.files import HeldInputs, write_json
from topwork.params import FetchParams, Params
from topwork.stages import main_of
from topwork.weights.fit import check_fit
from topwork.weights.lock import LOCK_FILE
from topwork.weights.sources import fetch
from topwork.weights.weights import Weights, write_weights

FOLDER = Path("out/fetch")


def run(params: Params, root: Path = Path()) -> None:
    """Fetch the weights of params `fetch` into out/fetch."""
    held = HeldInputs(_files_read(params.fetch))
    weights = fetch(params.fetch, lock=root / LOCK_FILE)
    check_fits_builder(weights)
    held.check()
    write_weights(root / FOLDER / "pretrained.safetensors", weights)
    write_json(root / FOLDER / "provenance.json", provenance_of(weights))


def _files_read(params: FetchParams) -> dict[str, Path]:
    """The local files among what params `fetch` name."""
    named = {
        "source": params.source,
        "builder": (params.builder or "").rpartition(":")[0],
        "classes": params.classes if isinstance(params.classes, str) else "",
    }
    return {name: Path(text) for name, text in named.items() if text and Path(text).is_file()}


def check_fits_builder(weights: Weights) -> None:
    """Hold the tensors against the detector that the builder makes for these columns.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named.
        SurgeryError: the builder can't be found, or fails.
    """
    check_fit(weights, shapes_of(weights.builder, len(weights.columns), weights.builder_args, len(weights.absorbed)))


def provenance_of(weights: Weights) -> dict[str, object]:
    """What provenance.json says: the source's facts, the detector and its columns."""
    return {
        **weights.provenance,
        "builder": weights.builder,
        "builder_args": weights.builder_args,
        "columns": list(weights.columns),
        "tensors": len(weights.state_dict),
        "values": sum(tensor.numel() for tensor in weights.state_dict.values()),
    }


def main() -> int:
    """Run the stage alone."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
