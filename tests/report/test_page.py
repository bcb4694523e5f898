"""The page: the same bytes for the same run, nothing passed over in silence, never a crash for what
may be missing.
"""

import platform
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest

from report.project import build_project, document
from topwork.errors import TopworkError
from topwork.files import write_json
from topwork.params.document import load_params, parse_params
from topwork.project.evaluate import VERDICT, VerdictRecord
from topwork.project.finetune import RECORD, RunRecord
from topwork.report.page import render_report
from topwork.report.run import Run, WorkingFiles
from topwork.stages import report


class Ids(HTMLParser):
    """Ids, and the ids that links and labels speak of."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and value and value.startswith("#"):
                self.named.add(value[1:])
            elif name in ("href", "src"):
                self.sources.append((value or "")[:40])
            if name in ("aria-labelledby", "aria-describedby"):
                self.named |= set((value or "").split())


def text_of(folder: Path) -> str:
    return render_report(Run(WorkingFiles(folder), load_params(folder / "params.yaml")))


def test_same_run_same_bytes_wherever_it_lies(finished: Path, project: Path) -> None:
    first, second = text_of(finished), text_of(project)
    assert first == second
    assert str(finished) not in first
    assert str(project) not in first
    assert not re.search(r"\b20\d\d-\d\d-\d\d", first)


def test_stage_writes_the_page_and_leaves_inputs_alone(project: Path) -> None:
    report.run(load_params(project / "params.yaml"), project)
    page = (project / "out/report/report.html").read_text()
    assert len(page.encode()) < 5_000_000
    assert "<h1>Yard: person kept, helmet and forklift learned</h1>" in page
    assert "<script" not in page


def test_ids_are_unique_and_every_reference_has_its_target(finished: Path) -> None:
    found = Ids()
    found.feed(text_of(finished))
    assert len(found.ids) == len(set(found.ids))
    assert found.named <= set(found.ids)
    assert {source.split(":")[0] for source in found.sources} == {"data"}


def test_every_section_has_its_content(finished: Path) -> None:
    page = text_of(finished)
    for words in (
        "Contract",
        "Ground truth",
        "Source set",
        "train / loss",
        "AP by class, test set",
        "Calibration",
        "localisation",
        "box-zero",
        "mean of car, truck",
        "absorb",
        "out/surgery/receipt.json",
        "git log --oneline",
        "Kept-class objects without a label",
    ):
        assert words in page, words


def test_every_command_is_one_that_topwork_knows(finished: Path) -> None:
    """Reproduce says exact commands: each parses, and the files it names are there."""
    import argparse
    from importlib import import_module

    from topwork.report.lineage import commands

    mine = [
        command.split()
        for _, command in commands(Run(WorkingFiles(finished)))
        if command.startswith("topwork ")
    ]
    assert [words[1] for words in mine] == ["verify-graft", "audit"]
    for _, name, *arguments in mine:
        parser = argparse.ArgumentParser(exit_on_error=False)
        import_module(f"topwork.commands.{name.replace('-', '_')}").add_arguments(parser)
        parser.parse_args(arguments)
        assert all((finished / word).is_file() for word in arguments if "/" in word)


def test_breach_is_on_top(project: Path) -> None:
    verdict = VerdictRecord.read(project / VERDICT)
    breach = verdict.contracts[0].model_copy(
        update={"holds": False, "found": 0.5, "interval": (0.4, 0.6)}
    )
    VerdictRecord(holds=False, contracts=(breach,)).write(project / VERDICT)
    page = text_of(project)
    assert 'class="verdict breached"' in page
    assert "Person kept 50% of its pretrained AP where at least 90% was asked" in page


def test_versions_are_those_of_the_run(project: Path) -> None:
    """The page shows the environment that trained, not the one that makes the page."""
    record = RunRecord.read(project / RECORD)
    ran = {"python": "3.8.1", "torch": "1.0.1.post2", "torchvision": "0.2.3", "pillow": "5.4.1"}
    record.model_copy(update={"versions": ran, "machine": {"device": "cpu"}}).write(
        project / RECORD
    )
    page = text_of(project)
    (section,) = re.findall(r"<summary>Versions</summary>(.*?)</details>", page, re.DOTALL)
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section)) == ran
    installed = {name: version(name) for name in ran if name != "python"}
    for name, found in {**installed, "python": platform.python_version()}.items():
        assert found not in page, name
    (project / RECORD).unlink()
    assert "<summary>Versions</summary>" not in text_of(project)


def test_titles_and_names_are_escaped(project: Path) -> None:
    write_json(
        project / "params.yaml",
        document(report={"title": "<script>alert(1)</script> & more", "pictures": 1}),
    )
    page = text_of(project)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("out/unlabelled", "The search for unlabelled objects of kept classes wasn"),
        ("out/finetune/curves", "No training curves"),
        ("out/evaluate/plots", "evaluate left no confusion matrix"),
        ("out/predict", "evaluate left no predictions on the test set."),
        ("out/evaluate/images.parquet", "evaluate left no scores of single images."),
        ("out/surgery", "The run has no surgery receipt."),
        ("out/validate/findings.parquet", "The data gate found nothing at fault."),
        ("out/evaluate/verdict.json", "No contract set"),
    ],
    ids=lambda value: value.split("/")[-1] if "/" in value else "",
)
def test_what_is_missing_is_named(project: Path, gone: str, note: str) -> None:
    path = project / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert note in text_of(project)


def test_a_missing_source_set_is_named(tmp_path: Path) -> None:
    dataset = {key: value for key, value in document()["dataset"].items() if key != "source"}
    build_project(
        tmp_path, test=3, train=3, dataset=dataset, retention={}, evaluate={"bootstrap": 0}
    )
    page = text_of(tmp_path)
    assert "No source set was given (dataset.source)" in page
    assert "No confidence intervals were estimated" in page
    assert "No contract set" in page


@pytest.mark.parametrize(
    ("path", "content", "match"),
    [
        (
            "out/evaluate/classes.json",
            None,
            r"out/evaluate/classes\.json: no such file.*dvc repro evaluate",
        ),
        ("out/evaluate/verdict.json", "{", r"out/evaluate/verdict\.json: not readable as JSON"),
        (
            "out/validate/images.parquet",
            "x",
            r"out/validate/images\.parquet: not readable as a table",
        ),
    ],
    ids=["missing", "half a JSON", "no Parquet"],
)
def test_damage_is_an_error_and_the_old_page_stays(
    project: Path, path: str, content: str | None, match: str
) -> None:
    (project / "out/report").mkdir()
    (project / "out/report/report.html").write_text("old")
    (project / path).unlink()
    if content is not None:
        (project / path).write_text(content)
    with pytest.raises(TopworkError, match=match):
        report.run(load_params(project / "params.yaml"), project)
    assert (project / "out/report/report.html").read_text() == "old"


def test_a_truncated_test_image_is_named(project: Path) -> None:
    for image in (project / "data/demo/yard/test/images").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(TopworkError, match=r"yard_test_\d+\.jpg: can't be drawn"):
        text_of(project)


def test_pictures_can_be_left_out(project: Path) -> None:
    write_json(project / "params.yaml", document(report={"pictures": 0}))
    page = text_of(project)
    assert "report.pictures is 0" in page
    assert "data:image/jpeg" not in page


def test_unknown_report_key_is_refused() -> None:
    with pytest.raises(TopworkError, match=r"report\.picture.*did you mean `pictures`"):
        parse_params(document(report={"picture": 3}))


@pytest.mark.long
def test_a_thousand_test_images(tmp_path: Path) -> None:
    """How long it takes is measured by benchmarks/evaluation.py."""
    build_project(tmp_path, test=1000, source=12, train=10, report={"pictures": 12})
    report.run(load_params(tmp_path / "params.yaml"), tmp_path)
    assert (tmp_path / "out/report/report.html").stat().st_size < 5_000_000
