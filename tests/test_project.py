"""The wiring: params, dvc.yaml against the import graph, docs against code, what `topwork init`
writes.
"""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from topwork.errors import ParamsError, TopworkError
from topwork.files import (
    HeldInputs,
    atomic_folder,
    atomic_path,
    canonical_json,
    sha256_path,
    write_json,
)
from topwork.params.document import load_params, parse_params
from topwork.scaffold.template import DEMO, add_files, template, template_files
from topwork.training.imports import closure as code_closure

ROOT = Path(__file__).parents[1]
MINIMAL: dict[str, Any] = {
    "dataset": {"root": "data", "train": {"annotations": "train.json", "images": "images"}},
    "surgery": {"classes": {"person": "keep"}},
}


def read_yaml(path: Path) -> dict[str, Any]:
    document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


STAGES = {
    **read_yaml(ROOT / "dvc.yaml")["stages"],
    **read_yaml(ROOT / "data" / "dvc.yaml")["stages"],
}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("topwork", cache_dir=None, exclude_type_checking_imports=True)


def closure(graph: grimp.ImportGraph, stage: str) -> set[Path]:
    """Files of a stage's import closure, the packages that they lie in included; aside are
    those that can't change what a stage writes.
    """
    names = {f"topwork.stages.{stage}"} | graph.find_upstream_modules(f"topwork.stages.{stage}")
    names |= {
        ".".join(name.split(".")[:length])
        for name in names
        for length in range(2, name.count(".") + 1)
    }
    files = set()
    for name in names - {"topwork", "topwork.environment", "topwork.errors", "topwork.events"}:
        path = ROOT / "src" / Path(*name.split("."))
        files.add(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    return {file for file in files if has_code(file)}


def has_code(file: Path) -> bool:
    """Whether a module is more than a docstring."""
    return len(ast.parse(file.read_text(encoding="utf-8")).body) > 1


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def declared(stage: str) -> set[Path]:
    """Python files that a stage's deps name, in folders and by themselves."""
    paths = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")]
    return {
        file
        for path in paths
        for file in (path.rglob("*.py") if path.is_dir() else [path])
        if file.suffix == ".py"
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_deps_name_all_the_code_that_it_imports_and_little_else(
    stage: str, imports: grimp.ImportGraph
) -> None:
    """One way: nothing that can change its output is missing. The other: at most a quarter of the
    declared lines can't.
    """
    needed, named = closure(imports, stage), declared(stage)
    missing = sorted(file.relative_to(ROOT).as_posix() for file in needed - named)
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {', '.join(missing)}"
    beyond = sum(len(lines(file)) for file in named - needed)
    total = sum(len(lines(file)) for file in named)
    too_wide = sorted(file.relative_to(ROOT).as_posix() for file in named - needed)
    assert beyond <= total / 4, (
        f"{stage}: {beyond} of {total} declared lines are never imported: {', '.join(too_wide)}"
    )


def test_our_own_import_closure_is_grimps(imports: grimp.ImportGraph) -> None:
    """What the resume key hashes is what an independent tool finds."""
    entry = "topwork.training.setup"
    names = {entry} | imports.find_upstream_modules(entry)
    names |= {
        ".".join(name.split(".")[:length])
        for name in names
        for length in range(1, name.count(".") + 1)
    }
    assert set(code_closure(entry)) == names


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_the_sections_that_it_reads_but_runtime(stage: str) -> None:
    """The sections of a stage's own params model, and those alone, stand under `params` in dvc.yaml
    (or keys of them).
    """
    module = importlib.import_module(f"topwork.stages.{stage}")
    model = getattr(module, "Params", None) or module.TrainingParams
    tracked = {key.split(".")[0] for key in STAGES[stage]["params"]}
    read = set(model.model_fields) - {"runtime"} - ({"demo"} if stage == "report" else set())
    assert tracked == read


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_module_and_its_params_exist(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m topwork.stages.{stage}"
    document = load_params(ROOT / "params.yaml").model_dump()
    for key in STAGES[stage].get("params", []):
        value: Any = document
        for part in key.split("."):
            value = value[part]


def test_every_dep_that_is_not_code_is_an_out_upstream() -> None:
    outs = {
        out if isinstance(out, str) else next(iter(out))
        for stage in STAGES.values()
        for kind in ("outs", "metrics")
        for out in stage.get(kind, [])
    }
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith(("src/", "$", "weights")):
                assert any(out == dep or out.startswith(f"{dep}/") for out in outs), (
                    f"{name}: {dep}"
                )


def test_every_param_has_a_docstring_and_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        written = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == written, f"{name}: run python docs/generate.py"
    assert "|  |" not in generate.reference(), "a param without docstring"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataste": {}}, r"params\.yaml: `dataste`: unknown key, did you mean `dataset`\?"),
        (
            {"finetune": {"leaning_rate": 1}},
            r"`finetune\.leaning_rate`: unknown key, did you mean `\w+`\? \(known: protect",
        ),
        ({"finetune": {"lr": -1}}, r"`finetune\.lr`: found -1, input should be greater than 0"),
        (
            {"surgery": {"classes": {}}},
            r"`surgery\.classes`: found \{\}, value error, names no class",
        ),
        ({"dataset": {"root": "data"}}, r"`dataset\.train`: missing"),
        (
            {"retention": {"person": {"min": 0.9, "onn": "test"}}},
            r"`retention\.person\.onn`: unknown key, did you mean `on`\?",
        ),
        ({"finetune": {"device": "cpu"}}, r"`finetune\.device`: is now `runtime\.device`"),
    ],
    ids=[
        "section",
        "key",
        "value",
        "empty plan",
        "missing",
        "key of a dict's value",
        "key that moved",
    ],
)
def test_a_fault_in_params_names_the_key_and_the_nearest_one(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_params({**MINIMAL, **change})


def test_all_faults_of_params_are_named_together() -> None:
    with pytest.raises(ParamsError, match=r"`finetune\.lr`.*`predict\.batch_size`"):
        parse_params({**MINIMAL, "finetune": {"lr": 0}, "predict": {"batch_size": 0}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"params\.yaml: no such file.*topwork init"),
        ("a: [", r"params\.yaml: not readable as YAML"),
        ("- 1", r"params\.yaml: found list, expected sections"),
    ],
    ids=["missing", "broken", "another shape"],
)
def test_an_unreadable_params_file_is_reported(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")


def test_paths_of_the_data_set_are_joined_to_its_root() -> None:
    params = parse_params(MINIMAL)
    assert params.dataset.train.annotations == Path("data/train.json")
    assert params.dataset.train.images == Path("data/images")


HEAVY = ("torch", "torchvision", "pandas", "prefect", "dvc", "numpy", "pyarrow")


@pytest.mark.parametrize("module", ["topwork", "topwork.cli", "topwork.commands.init"])
def test_the_command_line_starts_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_shows_an_example_in_its_help() -> None:
    from topwork.cli import COMMANDS

    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "topwork.cli", command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"topwork {command}" in done.stdout.split("Example", 1)[-1], command


def test_the_demos_template_is_the_repositorys_own_top_level(tmp_path: Path) -> None:
    add_files(tmp_path, template_files(DEMO, flows=True))
    assert template() == ROOT
    for part in DEMO:
        ours, theirs = ROOT / part, tmp_path / part
        if part.endswith("dvc.yaml"):
            assert "src/" not in theirs.read_text()
            kept = [line for line in ours.read_text().splitlines() if "src/topwork" not in line]
            assert kept == [
                line for line in theirs.read_text().splitlines() if "requirements.txt" not in line
            ]
            assert theirs.read_text().count("- requirements.txt") == len(read_yaml(ours)["stages"])
        elif ours.is_file():
            assert ours.read_bytes() == theirs.read_bytes()
    flows = [path.name for path in (ROOT / "flows").glob("*.py")]
    assert flows
    for name in flows:
        assert (tmp_path / "flows" / name).read_bytes() == (ROOT / "flows" / name).read_bytes()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_json(target, {"b": 1, "a": 2})
    assert target.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(RuntimeError, match="midway"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    with pytest.raises(RuntimeError, match="midway"), atomic_folder(tmp_path / "folder") as folder:
        (folder / "half").touch()
        raise RuntimeError("midway")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert target.read_text().startswith('{\n  "a": 2')


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    target.write_text("before")
    with (
        pytest.raises(
            TopworkError, match=r"file\.json: can't be written \(No space left on device\)"
        ),
        atomic_path(target),
    ):
        Path("/dev/full").write_text("x" * 100)
    assert target.read_text() == "before"


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"ap": float("nan")})


def test_an_input_that_changes_while_a_stage_runs_stops_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    held = HeldInputs({"data": tmp_path / "data"})
    held.check()
    assert held.hashes["data"] == sha256_path(tmp_path / "data")
    (tmp_path / "data" / "a.txt").write_text("b")
    with pytest.raises(
        TopworkError, match=r"data: changed while the stage was reading it.*Nothing was written"
    ):
        held.check()
    with pytest.raises(TopworkError, match=r"gone: no such file or folder"):
        HeldInputs({"gone": tmp_path / "gone"})


def test_the_lock_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", lock.strip()))


def test_files_that_the_docs_name_exist() -> None:
    pattern = re.compile(r"\b(?:src|tests|benchmarks|flows|docs|pretrain)/[\w./-]+\.\w+")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "dvc.yaml"]
    named = {(page.name, path) for page in pages for path in pattern.findall(page.read_text())}
    assert len(named) > 20
    assert not {(page, path) for page, path in named if not (ROOT / path).exists()}
