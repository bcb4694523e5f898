"""The registry of rules: every one that the data gate knows, one line each.

error: training can't use it, or would certainly learn something wrong. warning: suspicious, have
a look. note: good to know.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """One named rule.

    Attributes:
        name: kebab-case, stable.
        severity: error (training can't use it), warning (suspicious), note (good to know).
        group: chapter of the documentation.
        explains: one line: what is wrong, and why it matters.
        fatal: the file can't be read past it, so that no list of ids helps.
    """

    name: str
    severity: Severity
    group: str
    explains: str
    fatal: bool = False


RULES: dict[str, Rule] = {}


def declare(group: str, name: str, severity: Severity, explains: str, fatal: bool = False) -> None:
    """Add a rule to the registry.

    Raises:
        ValueError: the name is taken.
    """
    if name in RULES:
        raise ValueError(f"rule {name!r} is declared twice")
    RULES[name] = Rule(name, severity, group, explains, fatal)


_file = partial(declare, "File")
_file(
    "file-unreadable",
    "error",
    "The annotation file is missing, a folder, a pipe, not permitted, or larger than memory.",
    fatal=True,
)
_file("file-empty", "error", "The annotation file has no bytes in it.", fatal=True)
_file(
    "file-not-json",
    "error",
    "The file isn't whole JSON (cut short, nested too deep, not text); the message has the"
    " position.",
    fatal=True,
)
_file(
    "file-not-coco",
    "error",
    "JSON of another shape: no object with the lists images, annotations and categories.",
    fatal=True,
)
_file(
    "file-not-voc",
    "error",
    "A Pascal VOC annotation that isn't XML of that shape, or declares entities.",
)
_file(
    "file-not-yolo",
    "error",
    "A YOLO data.yaml without a path to images or names of classes.",
    fatal=True,
)
_file(
    "yolo-class-count",
    "error",
    "`nc` of a YOLO set isn't the number of its `names`: a class is missing, or they're shifted.",
)
_file(
    "yolo-names-differ",
    "error",
    "Two YOLO files of one data set name a class number differently; label files hold only it.",
)
_file(
    "yolo-pose-undeclared",
    "error",
    "Rows of a YOLO set read as boxes with keypoints, and neither `kpt_shape` nor `task` says so.",
)
_file(
    "yolo-rows-mixed",
    "warning",
    "Some rows of a YOLO set are boxes and some are corners of polygons or oriented boxes.",
)
_file(
    "voc-corners",
    "note",
    "How the corners of a Pascal VOC set are counted: from 1, from 0, or between pixels.",
)
_file(
    "list-path-matched",
    "note",
    "A list of images names places of another machine; the files of that ending are read.",
)
_file(
    "file-encoding",
    "warning",
    "The text has a byte order mark or is UTF-16/32; most readers stop at that.",
)
_file(
    "file-nan-token",
    "warning",
    "The JSON has NaN or Infinity, which the format doesn't allow; strict readers stop at it.",
)
_file(
    "file-key-twice",
    "error",
    "An object has the same key twice; readers keep one of the two without a warning.",
)
_file("set-empty", "error", "A set has no images at all.", fatal=True)
_file("set-unannotated", "warning", "A set has images but not one annotation.")
_file(
    "train-unannotated",
    "error",
    "The training set has images but not one annotation: a folder of labels under another name?",
)

_record = partial(declare, "Records and ids")
_record(
    "record-malformed",
    "error",
    "A record isn't an object, or a field is missing or of the wrong type; it can't be put in the"
    " tables.",
)
_record("image-id-twice", "error", "Two images have the same id: their boxes can't be kept apart.")
_record(
    "annotation-id-twice",
    "error",
    "Two annotations have the same id; pycocotools keeps the last and drops the other.",
)
_record("category-id-twice", "error", "Two categories have the same id.")
_record(
    "annotation-id-missing", "warning", "An annotation has no id; it's given the next free one."
)
_record("id-text", "warning", "An id is text; it's read as the number it spells.")
_record("id-negative", "warning", "An id is below zero; several tools use -1 for 'none'.")
_record("image-id-dangling", "error", "An annotation names an image that the file doesn't list.")
_record(
    "category-id-dangling", "error", "An annotation names a category that the file doesn't list."
)
_record(
    "image-listed-twice",
    "warning",
    "Two image records name the same file: its boxes are split between them, so each teaches"
    " 'nothing there'.",
)
_record(
    "image-boxes-differ",
    "error",
    "Two image records name the same file and have other boxes: one's objects are the other's"
    " background.",
)
_record(
    "image-size-missing",
    "warning",
    "An image record has no usable width and height; they're read from the image.",
)
_record(
    "image-empty",
    "note",
    "Images without an annotation: fine as background if that's what they are.",
)
_record(
    "label-without-image",
    "warning",
    "A label file (VOC, YOLO) has no image next to it; its boxes aren't used.",
)
_record(
    "label-shared",
    "error",
    "A label file (VOC, YOLO) could be of two images, such as a.jpg and a.png: both get its boxes.",
)

_box = partial(declare, "Boxes")
_box("box-missing", "error", "An annotation has no box.")
_box(
    "box-nan", "error", "A box has a coordinate that's NaN, infinite or null: the loss becomes NaN."
)
_box(
    "box-zero",
    "error",
    "A box has no width or no height; torchvision stops training at it (COCO train2017 has two).",
)
_box(
    "box-negative",
    "error",
    "A box has a negative width or height: corners swapped, or written another way.",
)
_box("box-outside", "error", "A box lies wholly outside its image.")
_box("box-beyond", "warning", "A box reaches beyond its image by more than a pixel.")
_box("box-rounding", "note", "A box reaches beyond its image by a pixel or less: rounding.")
_box(
    "box-tiny",
    "warning",
    "A side of a box is under two pixels: a slip of the mouse, or lost after resizing.",
)
_box(
    "box-whole-image",
    "note",
    "A box covers its whole image: a close-up, or a class label written as a box.",
)
_box("box-slim", "note", "A box is over 50 times as long as it's wide.")
_box(
    "box-xyxy",
    "warning",
    "Many boxes leave the image as written but fit if the last two numbers are a corner: written as"
    " xyxy?",
)
_box(
    "box-normalised",
    "error",
    "All coordinates of a set are between 0 and 1: shares of the image, where pixels are expected.",
)
_box(
    "box-twin",
    "warning",
    "Two annotations of one class have the same box, to half a pixel: one object counted twice.",
)
_box(
    "box-near-twin",
    "warning",
    "Two boxes of one class in one image overlap with IoU above 0.95: likely one object drawn"
    " twice.",
)
_box("box-two-classes", "warning", "The same box has two classes.")
_box(
    "box-rotated",
    "error",
    "A box has an angle that its numbers leave out, as CVAT writes it: it isn't around the object.",
)

_area = partial(declare, "Areas and crowds")
_area(
    "area-missing",
    "note",
    "Annotations have no area; COCO's small/medium/large figures then need width times height.",
)
_area("area-bad", "warning", "An area is NaN, infinite, zero or negative.")
_area("area-beyond-box", "warning", "An area is larger than its box.")
_area("crowd-flag", "warning", "iscrowd is neither 0 nor 1.")
_area(
    "crowd-polygon",
    "warning",
    "A crowd has polygons; COCO's crowds are run lengths, and pycocotools treats them so.",
)
_area(
    "crowd-many",
    "warning",
    "Half of a class's annotations or more are crowds: training and AP leave crowds out.",
)
_area(
    "crowd-all",
    "error",
    "All annotations of a class in train are crowds (or `difficult`): it would never be learned.",
)

_segmentation = partial(declare, "Segmentation")
_segmentation(
    "segmentation-malformed",
    "warning",
    "A segmentation is neither a list of polygons nor run lengths.",
)
_segmentation("segmentation-nan", "warning", "A polygon has a coordinate that isn't finite.")
_segmentation("polygon-odd", "warning", "A polygon has an odd number of coordinates.")
_segmentation(
    "polygon-short",
    "warning",
    "A polygon has fewer than three points; pycocotools takes four numbers for a box.",
)
_segmentation("polygon-flat", "warning", "A segmentation's polygons enclose no area.")
_segmentation(
    "segmentation-outside", "warning", "A polygon reaches beyond its image by more than a pixel."
)
_segmentation(
    "segmentation-box-differs",
    "warning",
    "A segmentation's extent and its box are apart by more than the tolerance: one of them is"
    " wrong.",
)
_segmentation(
    "segmentation-area-differs",
    "note",
    "A polygon's area and the area field differ by more than a fifth.",
)
_segmentation("rle-size-differs", "warning", "Run lengths are for an image of another size.")
_segmentation(
    "rle-counts", "warning", "Run lengths don't add up to the image, or can't be decoded."
)

_category = partial(declare, "Categories")
_category("category-none", "error", "A set names no category.", fatal=True)
_category(
    "category-name-twice",
    "error",
    "Two categories have the same name; a class is found by its name.",
)
_category(
    "category-name-case",
    "warning",
    "Two categories differ only in case, spaces, hyphens or underscores.",
)
_category("category-name-blank", "error", "A category's name is missing or blank.")
_category(
    "category-name-reserved",
    "error",
    "A category is named `__background__` or `N/A`, which mean columns without a class.",
)
_category(
    "category-placeholder",
    "note",
    "LabelMe's `_background_` or `__ignore__` without an annotation: no class, left out.",
)
_category("category-unused", "note", "A category has no annotation in its set.")
_category(
    "category-off-by-one",
    "warning",
    "Names are COCO's, but ids are shifted by one against COCO-91 or COCO-80.",
)
_category(
    "category-coco80-ids",
    "note",
    "Names are COCO's with the ids 1 to 80 (or 0 to 79), not COCO's own 1 to 90: match them by name"
    " only.",
)
_category(
    "category-id-zero",
    "note",
    "A category has the id 0, which torchvision's detectors use for background; here names decide.",
)
_category(
    "category-ids-differ", "note", "The same class has different ids in two splits; names decide."
)
_category(
    "category-sets-differ",
    "warning",
    "A class is in one split's categories and not in another's.",
)
_category(
    "category-missing-from-split",
    "warning",
    "A class has boxes in one of train, val and test, and none in another.",
)
_category("category-rare", "warning", "A class has fewer than 10 boxes in train.")
_category(
    "category-imbalance",
    "note",
    "The commonest class has over 100 times as many boxes as the rarest.",
)
_category(
    "category-alias-unknown", "warning", "dataset.aliases names a category that no split has."
)

_image = partial(declare, "Images")
_image("image-missing", "error", "The image isn't in the folder or archive.")
_image(
    "image-unreadable",
    "error",
    "The file is no image that can be opened (0 bytes, HTML, another format).",
)
_image(
    "image-truncated",
    "error",
    "The image ends early or its data are broken: part of it would be grey.",
)
_image("image-bomb", "error", "The image has so many pixels that decoding it could exhaust memory.")
_image(
    "image-size-differs",
    "error",
    "The image isn't of the size that the annotations declare, so that its boxes may be elsewhere.",
)
_image(
    "image-exif-rotated",
    "warning",
    "EXIF asks to turn the image: it's read turned, and the message says how boxes were read.",
)
_image(
    "exif-undecided",
    "error",
    "Nothing says whether labels were made on the turned or the stored picture; `dataset.exif`.",
)
_image("image-grey", "note", "The image has no colour channels; it's read as RGB.")
_image("image-cmyk", "warning", "The image is CMYK, whose colours change in the conversion to RGB.")
_image(
    "image-deep",
    "warning",
    "The image has 16 bits or more a channel; they're scaled to 8 by their range.",
)
_image(
    "image-alpha",
    "note",
    "The image has transparency or a palette; what's transparent is shown as stored.",
)
_image("image-animated", "warning", "The image has several frames; only the first is read.")
_image("image-tiny", "warning", "A side of the image is under 32 pixels.")
_image("image-flat", "warning", "The image is one flat colour.")
_image(
    "image-unlisted", "note", "Image files in the folder or archive that no annotation file lists."
)
_image(
    "archive-unreadable", "error", "The folder or archive of images can't be opened.", fatal=True
)
_image(
    "archive-bomb",
    "error",
    "An archive's member claims to unpack to over a thousand times its size, and over 256 MB.",
)
_image(
    "archive-path-outside",
    "warning",
    "An archive's member is named `..` or absolute; it's never unpacked nor read.",
)

_path = partial(declare, "Paths")
_path(
    "path-outside", "error", "A file name leads out of the image folder by `..`; it's never read."
)
_path(
    "path-absolute",
    "error",
    "A file name is absolute, so that it holds on one machine only; it's never read.",
)
_path("path-backslash", "warning", "A file name has a backslash: found on Windows only.")
_path(
    "path-symlink-out",
    "note",
    "An image is a symbolic link to a place outside the folder (as DVC's symlink cache makes).",
)
_path(
    "path-case-twins",
    "warning",
    "Two file names differ only in case: one overwrites the other on macOS and Windows.",
)
_path(
    "path-case-differs",
    "warning",
    "The image is there under a name of another case: found on macOS and Windows only.",
)
_path(
    "path-matched",
    "note",
    "File names are written another way than the files' (`dataset.match: nearest`).",
)

_duplicate = partial(declare, "Duplicates and leakage")
_duplicate(
    "duplicate-image", "warning", "Two images of one split have the same bytes under two names."
)
_duplicate(
    "duplicate-image-across",
    "warning",
    "The same image is in two splits: the test would use training data.",
)
_duplicate("near-duplicate", "note", "Two images of one split look the same (perceptual hash).")
_duplicate(
    "near-duplicate-across",
    "warning",
    "Images of two splits look the same (perceptual hash): a leak.",
)
_duplicate(
    "duplicate-labels-differ", "warning", "Two images have the same bytes and different boxes."
)

_split = partial(declare, "Splits")
_split("split-empty", "error", "A split got no image.")
_split("split-group-leak", "warning", "A group (`split.group_by`) has images in several splits.")
_split(
    "split-ungrouped",
    "warning",
    "An image has no group: the field is missing, or the pattern doesn't match.",
)

_choice = partial(declare, "Choices")
_choice("drop-unknown", "warning", "dataset.drop or drop_images names an id that isn't there.")


def rules_table() -> str:
    """All rules as Markdown, a table a group, as docs/data.md holds them."""
    pieces = []
    for group in dict.fromkeys(rule.group for rule in RULES.values()):
        rows = [rule for rule in RULES.values() if rule.group == group]
        lines = "".join(f"| `{rule.name}` | {rule.severity} | {rule.explains} |\n" for rule in rows)
        pieces.append(f"### {group}\n\n| rule | severity | meaning |\n|---|---|---|\n{lines}")
    return "\n".join(pieces)
