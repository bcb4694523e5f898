"""Test images with the pretrained detector's boxes and the fine-tuned one's, side by side."""

import base64
import io
from pathlib import Path

from PIL import Image

from topwork.errors import TopworkError
from topwork.inference.drawing import draw_boxes
from topwork.params.document import load_params
from topwork.report.figures import class_figures
from topwork.report.page import thresholds
from topwork.report.pictures import choose
from topwork.report.run import Run, WorkingFiles

SIDE = 480
QUALITY = 75


def before_and_after(root: Path, count: int) -> list[tuple[str, str]]:
    """Images of the test set, chosen as the report chooses them: the file's name, and a JPEG as a
    data URI, before on the left, after on the right. None where the run doesn't have what it takes.
    """
    if not (root / "params.yaml").is_file():
        return []
    try:
        run = Run(WorkingFiles(root), load_params(root / "params.yaml"))
        frames = [run.predictions(model, "test") for model in ("pretrained", "finetuned")]
        scores = run.image_f1("finetuned", "test")
        if scores is None or run.params is None:
            return []
        strong = thresholds(class_figures(run), run.params.report.min_score)
        images = run.tables.split("test").images.set_index("image_id")
        found = []
        for image_id in choose(scores, count):
            row = images.loc[image_id]
            content = run.files.image(str(row["image_root"]), str(row["file_name"]))
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            sides = [
                draw_boxes(picture, boxes[boxes["image_id"] == image_id].to_dict("records"))
                for boxes in (
                    strong.strong(frame, model)
                    for frame, model in zip(frames, ("pretrained", "finetuned"), strict=True)
                    if frame is not None
                )
            ]
            found.append((str(row["file_name"]), _side_by_side(sides)))
    except TopworkError:
        return []  # of an earlier layout
    return found


def _side_by_side(sides: list[Image.Image]) -> str:
    for side in sides:
        side.thumbnail((SIDE, SIDE))
    page = Image.new("RGB", (sum(side.width for side in sides), max(s.height for s in sides)))
    place = 0
    for side in sides:
        page.paste(side, (place, 0))
        place += side.width
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
