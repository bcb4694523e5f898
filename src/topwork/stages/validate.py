"""Stage `validate`: check the data and hand on tables.

Reads params `dataset`: annotation files and images. Writes out/validate: images, annotations and
categories as Parquet, findings.json and
findings.parquet, summary.json, splits.csv. The same data give the same bytes, on any machine.
Findings of the severity `dataset.fail_on` stop it; they're kept in .topwork/findings/ then, for a
look. The data are never changed; what was dropped by `dataset.drop` and `dataset.drop_images` is
listed in findings.json.
"""

from pathlib import Path

from topwork.errors import DataError
from topwork.files import HeldInputs, atomic_folder
from topwork.params.dataset import DatasetParams
from topwork.params.section import Sections
from topwork.project.names import SPLITS
from topwork.project.validate import FOLDER, IMAGE_CACHE, REFUSED
from topwork.stages import in_project, main_of
from topwork.validation.gate import changed_images, paragraph, stops, validate
from topwork.validation.outputs import write_all, write_findings


class Params(Sections):
    """What the stage reads of params.yaml."""

    dataset: DatasetParams


@in_project
def run(params: Params) -> None:
    """Check the data set and write its tables.

    Raises:
        DataError: findings of a severity that stops; all are named together.
    """
    dataset = params.dataset
    held = HeldInputs({str(path): path for path in _annotation_files(dataset)})
    found = validate(dataset, Path(), cache=IMAGE_CACHE)
    severities = stops(found.findings, dataset.fail_on)
    if severities:
        write_findings(found.findings, found.dropped, REFUSED)
        raise DataError(
            paragraph(found.findings, severities, (REFUSED / "findings.json").as_posix())
        )
    held.check()
    changed = changed_images(found, Path())
    if changed:
        raise DataError(
            f"{changed[0]}: changed while the stage was reading it ({len(changed)} images in all)."
            " Nothing was written; run the stage again."
        )
    with atomic_folder(FOLDER) as folder:
        write_all(found, folder)


def _annotation_files(dataset: DatasetParams) -> list[Path]:
    """Annotation files that are there; what's missing becomes a finding, named with all others.

    Images are held by size and time.
    """
    sets = [entry for name in SPLITS if (entry := getattr(dataset, name)) is not None]
    return [entry.annotations for entry in sets if entry.annotations.is_file()]


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
