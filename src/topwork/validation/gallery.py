"""A page of findings: pictures with their boxes, class and size histograms; for looking at, not for
later stages.
"""

import html
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from topwork.dataset.images import ImageStore
from topwork.errors import DataError
from topwork.files import atomic_path, write_text
from topwork.validation.findings import Finding
from topwork.validation.gate import Validation
from topwork.validation.rules import RULES

PER_RULE = 12
SIDE_PX = 320
GAP_PX = 6
SIZES = (0, 8, 16, 32, 64, 96, 128, 256, 512, 1024)

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;
color:#1c1f23;background:#fff}
h2{margin:2.2rem 0 .2rem}.error{color:#b3261e}.warning{color:#8a5a00}.note{color:#4a5560}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
figure{margin:0}figure img{max-width:100%;height:auto;display:block}
figcaption{font-size:13px;overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{padding:.1rem .8rem .1rem 0;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{background:#3d6e9e;height:.8rem;min-width:1px}td.b{width:24rem;max-width:40vw}"""


def write_gallery(found: Validation, base: Path, folder: Path, per_rule: int = PER_RULE) -> Path:
    """Write index.html with at most `per_rule` pictures a rule; returns the page's path."""
    pictures = _Pictures(found, base)
    sections = []
    order = list(dict.fromkeys(row.rule for row in found.findings))
    for rule in order:
        rows = [row for row in found.findings if row.rule == rule]
        figures = []
        for number, row in enumerate(rows[:per_rule]):
            name = f"pictures/{rule}-{number}.jpg"
            drawn = _picture(row, pictures)
            if drawn is not None:
                with atomic_path(folder / name) as temporary:
                    drawn.save(temporary, "JPEG", quality=85)
            picture = (
                ""
                if drawn is None
                else (
                    f'<img src="{name}" width="{drawn.width}" height="{drawn.height}"'
                    f' alt="{html.escape(row.message)}">'
                )
            )
            figures.append(
                f"<figure>{picture}<figcaption>{html.escape(row.text())}</figcaption></figure>"
            )
        about = RULES[rule]
        more = f"<p>{len(rows) - per_rule} more.</p>" if len(rows) > per_rule else ""
        sections.append(
            f'<h2 id="{rule}">{rule} <small class="{about.severity}">{about.severity},'
            f" {len(rows)}</small></h2><p>{html.escape(about.explains)}</p><div"
            f' class="grid">{"".join(figures)}</div>{more}'
        )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width,initial-scale=1">'
        f"<title>Findings</title><style>{STYLE}</style></head><body><h1>Findings</h1>"
        f"{_contents(found, order)}{_histograms(found)}{''.join(sections)}</body></html>\n"
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


class _Pictures:
    """The set's images by split and id, no side longer than SIDE_PX."""

    def __init__(self, found: Validation, base: Path) -> None:
        images = found.tables.images
        keys = zip(images["split"].tolist(), images["image_id"].tolist(), strict=True)
        places = zip(images["image_root"].tolist(), images["file_name"].tolist(), strict=True)
        self.places: dict[tuple[str | None, int | None], tuple[str, str]] = dict(
            zip(keys, places, strict=True)
        )
        self.base = base
        self.stores: dict[str, ImageStore | None] = {}

    def open(
        self, split: str | None, image_id: int | None, name: str | None = None
    ) -> tuple[Image.Image, float] | None:
        """An image (of that file name, where ids are there twice), and how much it was scaled; None
        where there is none to show.
        """
        if (split, image_id) not in self.places:
            return None
        root, listed = self.places[split, image_id]
        if root not in self.stores:
            try:
                self.stores[root] = ImageStore(self.base / root)
            except DataError:
                self.stores[root] = None
        store = self.stores[root]
        if store is None:
            return None
        try:
            image = store.open(name or listed)
        except DataError:
            return None
        scale = min(1.0, SIDE_PX / max(image.size))
        return (
            image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))),
            scale,
        )


def _picture(row: Finding, pictures: _Pictures) -> Image.Image | None:
    """The finding's image with its box, next to the one that it looks like; None where there's no
    image to show.
    """
    opened = None if row.image is None else pictures.open(row.split, row.image_id, row.image)
    if opened is None:
        return None
    image, scale = opened
    if row.box is not None and np.isfinite(row.box).all():
        x, y, width, height = (float(np.clip(value, -1e5, 1e5)) * scale for value in row.box)
        left, right = sorted((x, x + width))
        top, bottom = sorted((y, y + height))
        edges = (
            max(left - 2, 0),
            max(top - 2, 0),
            min(right + 2, image.width - 1),
            min(bottom + 2, image.height - 1),
        )
        # a box outside of its image has nothing to show
        if edges[0] <= edges[2] and edges[1] <= edges[3]:
            ImageDraw.Draw(image).rectangle(edges, outline=(255, 40, 40), width=2)
    other = pictures.open(row.other_split, row.other_image_id)
    return image if other is None else _side_by_side(image, other[0])


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures side by side, the finding's own first."""
    both = Image.new(
        "RGB", (left.width + GAP_PX + right.width, max(left.height, right.height)), "white"
    )
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP_PX, 0))
    return both


def _contents(found: Validation, order: list[str]) -> str:
    counts = found.findings.by_rule()
    if not order:
        return "<p>No finding.</p>"
    lines = "".join(
        f'<tr><td class="{RULES[rule].severity}">{RULES[rule].severity}</td><td><a'
        f' href="#{rule}">{rule}</a></td><td class="n">{counts[rule]}</td></tr>'
        for rule in order
    )
    return f"<table><tr><th>severity</th><th>rule</th><th>found</th></tr>{lines}</table>"


def _histograms(found: Validation) -> str:
    tables, pieces = found.tables, []
    for split in tables.splits:
        chosen, names = tables.split(split), tables.names(split)
        classes = Counter(
            names.get(int(key), f"category {key}") for key in chosen.annotations["category_id"]
        )
        pieces.append(
            f"<h2>{html.escape(split)}: boxes by class</h2>{_bars(classes.most_common(100))}"
        )
        sides = np.sqrt(
            (chosen.annotations["width"] * chosen.annotations["height"])
            .clip(lower=0)
            .fillna(0)
            .to_numpy(np.float64)
        )
        numbers, _ = np.histogram(sides, [*SIZES, np.inf])
        labels = [f"{low} to {high}" for low, high in pairwise(SIZES)] + [f"{SIZES[-1]} and more"]
        pieces.append(
            f"<h2>{html.escape(split)}: boxes by size (square root of area,"
            f" px)</h2>{_bars(list(zip(labels, numbers.tolist(), strict=True)))}"
        )
    return "".join(pieces)


def _bars(rows: list[tuple[str, int]]) -> str:
    most = max((count for _, count in rows), default=0) or 1
    lines = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{count}</td><td class="b"><div class="bar"'
        f' style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in rows
    )
    return f"<table>{lines}</table>"
