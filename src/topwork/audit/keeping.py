"""Was kept exactly what a recorded run says was kept? From its files in the cache, no model run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from topwork.audit.revision import Revision
from topwork.errors import TopworkError
from topwork.project.fetch import PRETRAINED
from topwork.project.finetune import FINETUNED, RECEIPT
from topwork.surgery.keeping import verify_keeping


def kept_statements(
    revision: Revision,
) -> Iterator[tuple[Literal["holds", "broken", "unchecked"], str]]:
    """(status, message) of the receipt of a run's fine-tuned file."""
    paths = [_cached(revision, path) for path in (PRETRAINED, FINETUNED, RECEIPT)]
    if any(path is None for path in paths):
        yield "unchecked", "weights or receipt aren't in the cache; `dvc fetch` may bring them"
        return
    source, result, receipt = (path for path in paths if path is not None)
    try:
        held = verify_keeping(source, result, receipt, trust=True)  # it builds no detector
    except TopworkError as error:
        yield "broken", str(error)
    else:
        yield "holds", "; ".join(held)


def _cached(revision: Revision, path: Path) -> Path | None:
    out = revision.outs.get(path.as_posix())
    if out is None or out.md5 is None:
        return None
    cached = revision.cached(out.md5)
    return cached if cached.is_file() else None
