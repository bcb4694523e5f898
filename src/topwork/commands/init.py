"""`topwork init FOLDER`: a new project, of data of one's own or of the demo."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import ParamsError, TopworkError

if TYPE_CHECKING:
    from topwork.scaffold.detector import Source
    from topwork.scaffold.rules import Rule
    from topwork.scaffold.texts import Choices
    from topwork.validation.layout import Layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = """\
Examples:
  topwork init yard --demo
  topwork init yard --data ~/export          # asks for the detector and for each class
  topwork init yard --data ~/export --yes --source torchvision:ssdlite320_mobilenet_v3_large/COCO_V1
  topwork init yard --data ~/export --yes --source demo --keep person worker=person
  topwork init yard --data ~/export --source-set ~/coco/val   # measures there what is kept
  topwork init yard                          # an older project: shows what a newer one has

Files that are there are never overwritten. On a terminal it asks twice at most; elsewhere, and with
--yes, it takes the flags and what the names suggest."""
    parser.add_argument("folder", type=Path, help="of the project: new, empty, or in a repository")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="labelled images: COCO, Pascal VOC, YOLO, as a file or folder; the format is found",
    )
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="its images, where they aren't near (COCO)"
    )
    parser.add_argument(
        "--source-set",
        type=Path,
        metavar="PATH",
        help="held-out labelled images such as the weights were trained on, copied along: what is"
        " kept is measured there (dataset.source)",
    )
    parser.add_argument("--demo", action="store_true", help="the embedded demo instead")
    parser.add_argument(
        "--source",
        help="pretrained weights: demo, torchvision:BUILDER/ENTRY, https://..., a file",
    )
    parser.add_argument("--builder", help="of weights that don't name their detector")
    parser.add_argument("--classes", help="of weights that don't name their columns")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="NAME",
        help="classes to keep from the weights; NAME=SOURCE where the weights call it otherwise",
    )
    parser.add_argument(
        "--rules",
        default="",
        metavar="TEXT",
        help="rules for classes, such as 'van = like truck, car; cone = new; sign = drop'",
    )
    parser.add_argument("--epochs", type=int, help="finetune.epochs (default: 12)")
    parser.add_argument(
        "--take",
        choices=["copy", "import", "link"],
        default="copy",
        help="copy the data into the project (default), let DVC import them and remember where"
        " from, or link them, on this machine alone",
    )
    parser.add_argument("--remote", metavar="URL", help="DVC remote for data and results")
    parser.add_argument("--flows", action="store_true", help="also Prefect flows")
    parser.add_argument("--yes", action="store_true", help="ask nothing")


def run(arguments: argparse.Namespace) -> int:
    """Write the project, make it a git and DVC repository, and print what to do next."""
    folder: Path = arguments.folder
    if arguments.demo and arguments.data is not None:
        raise ParamsError("init: --demo and --data exclude each other; give one.")
    if arguments.epochs is not None and arguments.epochs < 1:
        raise ParamsError(f"init: --epochs {arguments.epochs}, expected 1 or more.")
    if folder.exists() and not folder.is_dir():
        raise TopworkError(f"{folder}: a file, expected a folder; nothing was written.")
    if arguments.demo:
        return _demo(folder)
    if _is_project(folder):
        if arguments.data is not None:
            raise TopworkError(
                f"{folder}: holds a topwork project already; nothing was written. Change its data"
                f" in {folder / 'params.yaml'}, or see what a newer project has: topwork init"
                f" {folder}"
            )
        return _update(folder, yes=arguments.yes)
    if arguments.data is None:
        raise ParamsError(
            f"init: {folder} of what? With data of your own: topwork init {folder} --data PATH."
            f" With the embedded demo: topwork init {folder} --demo"
        )
    return _own(folder, arguments)


def _demo(folder: Path) -> int:
    from topwork.scaffold.repository import initialise
    from topwork.scaffold.template import DEMO, add_files, template_files

    if folder.exists() and any(folder.iterdir()):
        raise TopworkError(
            f"{folder}: exists and isn't empty; nothing was written. Name a new folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        add_files(folder, template_files(DEMO, flows=True))
    except OSError as error:
        raise TopworkError(f"{folder}: can't be written ({error}).") from error
    initialise(folder)
    print(
        f"{folder}: ready. Next:\n  cd {folder}\n  dvc repro        # the demo, in about four"
        " minutes on two cores\n  topwork summary\nWith data of your own: topwork init FOLDER"
        " --data PATH"
    )
    return 0


def _is_project(folder: Path) -> bool:
    graph = folder / "dvc.yaml"
    return (folder / "params.yaml").is_file() and (
        graph.is_file() and "topwork.stages" in graph.read_text(encoding="utf-8", errors="replace")
    )


def _own(folder: Path, arguments: argparse.Namespace) -> int:
    from topwork.scaffold.repository import commit, dvc, take_data
    from topwork.scaffold.template import FLOWS, OWN, REQUIREMENTS, add_files, template_files
    from topwork.scaffold.texts import GITIGNORE, MAKEFILE, params_text, readme_text

    layout, source_set, choices = _choose(folder.resolve().name, arguments)
    for place in filter(None, (layout.root, source_set)):
        if folder.resolve().is_relative_to(place.resolve()):
            raise TopworkError(
                f"{folder}: lies in its own data ({place}); nothing was written. Name another"
                " folder."
            )
    if source_set is not None and (
        arguments.take != "copy" or layout.root.resolve().is_relative_to(folder.resolve())
    ):
        raise TopworkError(
            "init: --source-set is copied next to the data, which are copied as well; these"
            f" aren't. Put it below {layout.root}, and name it as dataset.source in params.yaml."
        )
    inside = initialise_folder(folder)
    data = take_data(layout.root, folder, arguments.take, source_set)
    choices = replace(choices, dataset={**choices.dataset, "root": data.as_posix()})
    parts = (*OWN, *FLOWS) if arguments.flows else OWN
    files = template_files(parts, arguments.flows)
    files |= {
        "params.yaml": params_text(choices),
        "README.md": readme_text(choices, REQUIREMENTS),
        "Makefile": MAKEFILE,
        # DVC doesn't ignore a link by itself, and sees no .dvc file whose folder git ignores
        ".gitignore": GITIGNORE + (f"/{data}\n" if arguments.take == "link" else ""),
    }
    alone = add_files(folder, files)
    _take_weights(folder, choices.source)
    if arguments.remote is not None:
        dvc(folder, "remote", "add", "--quiet", "--default", "--force", "storage", arguments.remote)
    tracked = [*files, ".dvc", ".dvcignore", f"{data}.dvc", "data/.gitignore", "weights"]
    committed = commit(folder, [entry for entry in tracked if entry not in alone])
    for entry in alone:
        print(f"left alone: {folder / entry}, which is there already")
    contracts = choices.contracts()
    kept = (
        f"contract: {', '.join(f'{name} {line}' for name, line in contracts.items())}"
        if contracts
        else "no contract: no kept class has enough objects in a held-out set; give one by"
        " --source-set, or as dataset.source and `retention` in params.yaml"
    )
    print(
        f"{folder}: ready ({inside}; {committed}; {kept}). Next:\n"
        f"  cd {folder}\n"
        "  topwork doctor   # what would stop a run, and about how long one takes\n"
        "  dvc repro\n"
        "  topwork summary"
    )
    if arguments.remote is None:
        print("For a team, or a backup: dvc remote add --default storage URL; dvc push")
    return 0


def _choose(name: str, arguments: argparse.Namespace) -> "tuple[Layout, Path | None, Choices]":
    """What the data are, the folder of the source set, and what the user wants of them."""
    from topwork.scaffold.rules import kept_as
    from topwork.scaffold.texts import Choices
    from topwork.validation.find_layout import find_layout

    if arguments.yes and arguments.source is None:
        raise ParamsError(
            f"init: --yes needs --source, since the detector decides everything. {_sources()}"
        )
    if not arguments.yes and not sys.stdin.isatty():
        raise ParamsError(
            "init: there is no terminal to ask on. Give --yes with --source (and --keep, --rules"
            f" where names don't say it). {_sources()}"
        )
    layout = find_layout(arguments.data, arguments.images)
    _images_are_near(layout, arguments.data, "Give their folder or archive by --images.")
    dataset = _section(layout)
    print(f"{arguments.data}: taken for {layout.summary()}")
    boxes = _count(layout, dataset)
    for label, counts in boxes.items():
        print(f"  {label:<24} " + ", ".join(f"{n} {split}" for split, n in counts.items()))
    source_set = None
    if arguments.source_set is not None:
        dataset, source_set, objects = _source_set(layout, dataset, arguments.source_set)
    source = _ask_source(arguments)
    rules = _ask_rules(list(boxes), source, arguments)
    if source_set is not None:
        boxes = {
            name: boxes.get(name, {}) | {"source": objects.get(kept_as(name, rule) or "", 0)}
            for name, rule in rules.items()
        }
    return layout, source_set, Choices(name, dataset, source, rules, boxes, arguments.epochs)


def _images_are_near(layout: "Layout", path: Path, mend: str) -> None:
    lacking = [str(found.annotations) for found in layout.sets.values() if found.lacking]
    if lacking:
        raise TopworkError(f"{path}: none of the images of {', '.join(lacking)} is near it. {mend}")


def _source_set(
    layout: "Layout", dataset: dict[str, Any], path: Path
) -> tuple[dict[str, Any], Path, dict[str, int]]:
    """Section `dataset` with the source set, where it will lie; its folder now; class -> boxes."""
    from topwork.scaffold.repository import SOURCE_SET
    from topwork.validation.find_layout import find_layout

    if (layout.root / SOURCE_SET).exists():
        raise TopworkError(
            f"{layout.root / SOURCE_SET}: is there already, and --source-set {path} would be"
            " copied to it. Rename one of them."
        )
    found = find_layout(path)
    _images_are_near(found, path, "Put them there.")
    # of several splits, one that no training saw
    split = next(name for name in ("val", "test", "train") if name in found.sets)
    entry: dict[str, str] = _section(found)[split]
    counts = _count(found, {"train": entry})
    print(f"{path}: taken for {found.summary()}; its {split} is the source set")
    inside = {
        key: text if key == "subset" else (SOURCE_SET / text).as_posix()
        for key, text in entry.items()
    }
    objects = {name: sum(by_split.values()) for name, by_split in counts.items()}
    return {**dataset, "source": inside}, found.root, objects


def initialise_folder(folder: Path) -> str:
    """Make the folder and its repositories; refuse, before anything is written, a folder whose
    files a project needs for itself.
    """
    from topwork.scaffold.repository import initialise

    taken = [name for name in ("params.yaml", "dvc.yaml") if (folder / name).exists()]
    if taken:
        raise TopworkError(
            f"{folder}: has a {' and a '.join(taken)} of another pipeline; nothing was written."
            f" Name a folder of its own, such as {folder / 'detector'}."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TopworkError(f"{folder}: can't be made ({error}).") from error
    return initialise(folder)


def _section(layout: "Layout") -> dict[str, Any]:
    """Section `dataset`; splits that the data lack are taken out of train."""
    section = layout.params()
    missing = {name: 0.15 for name in ("val", "test") if name not in section}
    if missing:
        section["split"] = missing
    outside = [
        f"{split}.{key}: {text}"
        for split, entry in section.items()
        if isinstance(entry, Mapping)
        for key, text in entry.items()
        if ".." in Path(str(text)).parts
    ]
    if outside:
        raise TopworkError(
            f"{layout.root}: {'; '.join(outside)} lies outside of that folder, and a project's data"
            " lie in one. Give --data the folder that holds all of it."
        )
    return section


def _count(layout: "Layout", dataset: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Class -> split -> boxes; findings that `validate` would stop at are named."""
    from topwork.params.dataset import DatasetParams
    from topwork.validation.gate import paragraph, stops, validate

    params = DatasetParams.model_validate({**dataset, "root": layout.root})
    found = validate(params, images=False, segmentation=False)
    if severities := stops(found.findings, params.fail_on):
        print(f"note: `dvc repro` will stop at this: {paragraph(found.findings, severities)}")
    tables = found.tables
    names = dict.fromkeys(name for split in tables.splits for name in tables.names(split).values())
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    for split in tables.splits:
        rows = tables.split(split).annotations
        numbers = rows["category_id"].map(tables.names(split)).value_counts()
        for name in names:
            counts[name][split] = int(numbers.get(name, 0))
    return {name: by_split for name, by_split in counts.items() if any(by_split.values())}


def _sources() -> str:
    from topwork.scaffold.detector import cached, offered

    have = cached()
    listed = f"In the cache: {', '.join(have)}. " if have else ""
    return f"{listed}Such as: --source {offered()[0]} (`demo` knows drawn streets, no photographs)"


def _ask_source(arguments: argparse.Namespace) -> "Source":
    from topwork.scaffold.detector import cached, offered, source_of

    name = arguments.source
    if name is None:
        have, names = cached(), offered()
        print("Which detector to start from?")
        for index, offer in enumerate(names, start=1):
            where = "in the cache" if offer in have else "to be downloaded"
            text = "drawn streets only, for a try" if offer == "demo" else where
            print(f"  {index}  {offer} ({text})")
        answer = input("number, or a source [1]: ").strip() or "1"
        name = names[int(answer) - 1] if answer in map(str, range(1, len(names) + 1)) else answer
    return source_of(name, arguments.builder, arguments.classes)


def _ask_rules(
    names: list[str], source: "Source", arguments: argparse.Namespace
) -> "dict[str, Rule]":
    from topwork.errors import ClassPlanError
    from topwork.scaffold.rules import change, keep, propose, written

    rules = keep(propose(names, source.columns), arguments.keep, source.columns)
    rules = change(rules, arguments.rules, source.columns)
    while True:
        print("What becomes of each class:")
        for name, rule in rules.items():
            print(f"  {name:<24} {written(rule)}")
        if not source.columns:
            print("  (the weights' classes are known when they are fetched)")
        if arguments.yes:
            break
        answer = input("Enter to take it, or changes (van = like truck, car; cone = drop): ")
        if not answer.strip():
            break
        try:
            rules = change(rules, answer, source.columns)
        except ClassPlanError as error:
            print(error)
    if not rules:
        raise ClassPlanError("init: no class is left; a detector needs one.")
    return rules


def _take_weights(folder: Path, source: "Source") -> None:
    """Files of this machine that the source names, into weights/; large ones are DVC's."""
    import shutil

    from topwork.scaffold.repository import dvc

    for file in source.files:
        target = Path("weights") / file.name
        if (folder / target).exists() and (folder / target).samefile(file):
            continue
        if (folder / target).exists():
            raise TopworkError(f"{folder / target}: is there already; it wasn't written over.")
        shutil.copyfile(file, folder / target)
        if file == source.files[0]:
            dvc(folder, "add", "--quiet", target.as_posix())


def _update(folder: Path, *, yes: bool) -> int:
    """Show what a project made today has and this one lacks; write it after a yes."""
    from topwork.files import write_text
    from topwork.scaffold.template import DEMO, FLOWS, OWN, changes, template_files

    flows = (folder / "flows").is_dir()
    demo = (folder / "data/dvc.yaml").is_file()
    parts = [name for name in (DEMO if demo else OWN) if name not in ("params.yaml", ".gitignore")]
    parts = [name for name in parts if flows or name not in FLOWS]
    if flows and not demo:
        parts += FLOWS
    files = template_files(tuple(parts), flows)
    sections = _missing_sections(folder, files["dvc.yaml"])
    params = folder / "params.yaml"
    if sections:
        before = params.read_text(encoding="utf-8").rstrip("\n")
        files["params.yaml"] = before + "\n" + "".join(f"\n{name}: {{}}\n" for name in sections)
    difference = changes(folder, files)
    if not difference:
        print(f"{folder}: as a project that is made today.")
        return 0
    print(difference, end="")
    if not yes:
        if not sys.stdin.isatty():
            print("nothing was changed; --yes writes it")
            return 0
        if input("Write this? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was changed")
            return 0
    for name, text in files.items():
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)
    print("written; look at it (git diff), then: dvc repro")
    return 0


def _missing_sections(folder: Path, graph: str) -> list[str]:
    """Sections that the stages of a dvc.yaml track and params.yaml lacks."""
    from ruamel.yaml import YAML

    from topwork.params.section import read_document

    have = read_document(folder / "params.yaml")
    stages = YAML(typ="safe", pure=True).load(graph)["stages"]
    tracked = [
        str(key).partition(".")[0] for stage in stages.values() for key in stage.get("params", ())
    ]
    return [name for name in dict.fromkeys(tracked) if name not in have]
