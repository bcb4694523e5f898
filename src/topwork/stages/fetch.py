"""Stage `fetch`: get the pretrained weights, whole, known and safe.

Reads params `fetch` and what they name (the demo, torchvision's enums, a URL, a file, DVC, a hub),
and weights.lock. Writes out/fetch/pretrained.safetensors, out/fetch/provenance.json, and the hash
of a source seen for the first time into weights.lock, the project's memory, which git keeps. The
outputs depend on the source's bytes, the params and the versions of torch and torchvision, to the
byte. Stopped by a hash that isn't the known one, a file that is more than tensors, NaN or infinite
values, tensors that don't fit the builder, and a file of the project that DVC doesn't watch.
"""

from topwork.detectors.builders import check_fits_builder
from topwork.download.lock import keep_lock, parent_lock
from topwork.download.sources import fetch
from topwork.download.watched import check_watched, files_named
from topwork.files import HeldInputs
from topwork.params.fetch import FetchParams
from topwork.params.section import Sections
from topwork.project.fetch import PRETRAINED, PROVENANCE, WEIGHTS_LOCK, ProvenanceRecord
from topwork.stages import in_project, main_of
from topwork.weights.format import Weights, write_weights


class Params(Sections):
    """What the stage reads of params.yaml."""

    fetch: FetchParams = FetchParams()


@in_project
def run(params: Params) -> None:
    """Fetch the weights of params `fetch`."""
    check_watched(params.fetch)
    held = HeldInputs(files_named(params.fetch))
    weights = fetch(params.fetch, lock=WEIGHTS_LOCK, also_known=parent_lock(WEIGHTS_LOCK))
    check_fits_builder(weights)
    held.check()
    write_weights(PRETRAINED, weights)
    record_of(weights).write(PROVENANCE)
    keep_lock(WEIGHTS_LOCK)


def record_of(weights: Weights) -> ProvenanceRecord:
    """The source's facts, the detector and its columns."""
    tensors = weights.state_dict.values()
    facts = {
        **weights.provenance,
        "builder": weights.builder,
        "builder_args": weights.builder_args,
        "columns": weights.columns,
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors),
    }
    return ProvenanceRecord.model_validate(facts)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
