"""Stage validate: checks the data and hands on tables.

Reads dataset.* of params.yaml: annotation files and images. Writes out/validate/: images, annotations and categories as Parquet, findings.json
and findings.parquet, summary.json (metrics), splits.csv. The same data give the same bytes, on any machine. Findings of the severity
`dataset.fail_on` stop it; they're kept in .topwork/findings/ then, for a look. The data are never changed; what was dropped by
`dataset.drop` and `dataset.drop_images` is listed in findings.json.
"""

from pathlib import Path

from topwork.coco.outputs import write_all, write_findings
from topwork.coco.validation import changed_images, paragraph, stops, validate
from topwork.errors import DataError
from topwork.files import HeldInputs, atomic_folder
from topwork.params import Params
from topwork.stages import main_of

OUT = Path("out/validate")
CACHE = Path(".topwork/scratch/images")
KEPT = Path(".topwork/findings")


def run(params: Params, root: Path = Path()) -> None:
    """Check the data set and write its tables.

    Raises:
        DataError: findings of a severity that stops; all are named together.
    """
    dataset = params.dataset
    held = HeldInputs({str(path): path for path in _files(params, root)})
    found = validate(dataset, root, cache=root / CACHE)
    severities = stops(found.findings, dataset.fail_on)
    if severities:
        write_findings(found.findings, found.dropped, root / KEPT)
        raise DataError(paragraph(found.findings, severities, (KEPT / "findings.json").as_posix()))
    held.check()
    changed = changed_images(found, root)
    if changed:
        raise DataError(
            f"{changed[0]}: changed while the stage was reading it ({len(changed)} images in all). Nothing was written; run the stage again."
        )
    with atomic_folder(root / OUT) as folder:
        write_all(found, folder)


def _files(params: Params, root: Path) -> list[Path]:
    """Annotation files that are there; what's missing becomes a finding, told with all others. Images are held by size and time."""
    sets = (getattr(params.dataset, name) for name in ("train", "val", "test", "source", "replay"))
    return [root / entry.annotations for entry in sets if entry is not None and (root / entry.annotations).is_file()]


def main() -> int:
    """Run on the params.yaml of the current folder."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
