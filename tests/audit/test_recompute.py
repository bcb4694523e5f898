"""Past runs carried out again: by their own code, out by out, with the cause of what differs."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from audit import tampering
from audit.history import STAGES, commit, run_stages
from audit.tampering import KINDS, Copy
from conftest import done, edit_params, run
from topwork.audit.explain import explain, shapley
from topwork.audit.recompute import TREES, StageResult, recompute
from topwork.audit.revision import open_revision
from topwork.cli import main
from topwork.errors import AuditError, RevisionError
from topwork.files import path_md5


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Copy:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder, symlinks=True)
    return Copy(folder)


def again(copy: Copy, revision: str = "HEAD", **how: object) -> list[StageResult]:
    return recompute(open_revision(copy.root, revision), notify=lambda line: None, **how)  # type: ignore[arg-type]


def state(root: Path) -> dict[str, str]:
    """All that a recompute must leave alone."""
    cache = root / ".dvc" / "cache"
    return {
        "lock": path_md5(root / "dvc.lock"),
        "objects": path_md5(cache / "files"),
        "run cache": path_md5(cache / "runs") if (cache / "runs").is_dir() else "",
        "tree": done(root, "git", "status", "--porcelain"),
        "params": path_md5(root / "params.yaml"),
        "outs": path_md5(root / "out"),
    }


def spoil_the_tree(root: Path) -> None:
    """A later tree with other code, some of it half done."""
    (root / "src/topwork/evaluation/outputs.py").write_text("an edit half done")
    (root / "src/topwork/training/loop.py").write_text("another one")


def test_an_earlier_revision_runs_its_own_code_and_gives_the_same_bits(copy: Copy) -> None:
    spoil_the_tree(copy.root)
    before = state(copy.root)
    results = again(copy, "HEAD~3", start="predictions")
    assert [result.stage for result in results] == ["evaluate", "report", "gate"]
    assert all(result.matches for result in results), results
    assert state(copy.root) == before
    assert not list((copy.root / TREES).iterdir()), "the worktree is gone"
    assert done(copy.root, "git", "worktree", "list").count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("revision", ["HEAD", "HEAD~1", "HEAD~3", "bold"])
def test_all_stages_of_an_experiment_give_the_same_bits(copy: Copy, revision: str) -> None:
    spoil_the_tree(copy.root)
    before = state(copy.root)
    results = again(copy, revision)
    differing = [result for result in results if not result.matches]
    # where the contract was breached, the gate fails again
    assert [result.stage for result in differing] == (["gate"] if revision == "HEAD~1" else [])
    assert len(results) == 11
    assert state(copy.root) == before


@pytest.mark.long
def test_the_demo_gives_the_same_bits(project: Path) -> None:
    ended = run(project, "topwork", "audit", "recompute", "HEAD", timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ": MATCH: " in ended.stdout
    assert "data/dvc.yaml:demo: MATCH" in ended.stderr


def other_code(copy: Copy) -> None:
    copy.edit("src/topwork/evaluation/outputs.py", "    verdict.write(VERDICT)", OTHER_VERDICT)


OTHER_VERDICT = "    verdict.model_copy(update={'holds': False}).write(VERDICT)"


def other_param(copy: Copy) -> None:
    copy.edit("params.yaml", "min: 0.05", "min: 0.06")


def other_picture(copy: Copy) -> None:
    """A picture of the test set with other pixels, in DVC's file and the cache."""
    revision = copy.revision
    out = revision.outs["data/mine"]
    members = revision.members(out)
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (250, 10, 10)).save(stream, "PNG")
    members["images/test_0.png"] = copy.put(stream.getvalue())
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(members.items())]
    md5 = copy.put(json.dumps(listing, sort_keys=True).encode(), ".dir")
    copy.edit("data/mine.dvc", str(out.md5), md5)


def other_weights(copy: Copy) -> None:
    """The source of the pretrained weights, one value changed."""
    path = copy.root / "weights" / "tiny.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def surer(copy: Copy) -> None:
    def change(table):  # type: ignore[no-untyped-def]
        table["score"] = (table["score"] + 1) / 2
        return table

    copy.forge_table(tampering.PREDICTIONS, change, "finetuned.test.parquet")


def machine(**facts: str) -> Callable[[Copy], None]:
    """Predictions of a machine with other facts."""

    def tamper(copy: Copy) -> None:
        surer(copy)
        copy.forge_json("out/predict/record.json", lambda d: d["machine"].update(facts))

    return tamper


def dice(copy: Copy) -> None:
    """Code that the lock knows, and that draws lots."""
    lots = "    __import__('pathlib').Path(TABLE).write_bytes(__import__('os').urandom(9))"
    copy.edit("src/topwork/evaluation/outputs.py", "    table.write(TABLE)", lots)
    tampering.redo_folder(copy, "src/topwork/evaluation")


@pytest.mark.parametrize(
    ("tamper", "stage", "cause", "words"),
    [
        (other_code, "evaluate", "code", "dep src/topwork/evaluation"),
        (other_param, "evaluate", "params", "retention.person.min: 0.06 in the file"),
        pytest.param(other_picture, "predict", "data", "dep data/mine", marks=pytest.mark.long),
        pytest.param(other_weights, "fetch", "weights", "dep weights", marks=pytest.mark.long),
        pytest.param(
            machine(torch="1.0"), "predict", "environment", "machine.torch", marks=pytest.mark.long
        ),
        (machine(instruction_set="AVX9"), "predict", "hardware", "machine.instruction_set"),
        pytest.param(
            dice,
            "evaluate",
            "nondeterminism",
            "out/evaluate/table.json differs between two runs",
            marks=pytest.mark.long,
        ),
        pytest.param(surer, "predict", "record", "isn't what they give", marks=pytest.mark.long),
    ],
    ids=[
        "code",
        "params",
        "data",
        "weights",
        "environment",
        "hardware",
        "nondeterminism",
        "record",
    ],
)
def test_a_mismatch_is_reported_with_its_cause(
    copy: Copy, tamper: Callable[[Copy], None], stage: str, cause: str, words: str
) -> None:
    tamper(copy)
    copy.amend()
    (result,) = again(copy, stage=stage)
    assert not result.matches
    assert (result.cause, result.follows) == (cause, None), result
    assert words in result.reason, result


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind.found in ("weights", "training", "data")],
    ids=lambda kind: kind.name,
)
def test_the_recompute_of_the_threat_table_finds_it(copy: Copy, kind: tampering.Kind) -> None:
    kind.tamper(copy)
    copy.amend()
    results = again(copy, start=kind.found)
    first = next(result for result in results if not result.matches)
    assert first.cause is not None, results


def test_shares_add_up_whatever_causes_do_together() -> None:
    figures = {"": 0.5, "a": 0.6, "b": 0.45, "ab": 0.9}
    shares = {
        cause: shapley(cause, ["a", "b"], lambda chosen: figures["".join(sorted(chosen))])
        for cause in ("a", "b")
    }
    assert shares == pytest.approx({"a": 0.275, "b": 0.125})
    assert sum(shares.values()) == pytest.approx(figures["ab"] - figures[""])


def test_one_cause_explains_all_and_is_named(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has to run: both ends are recorded."""
    monkeypatch.chdir(copy.root)
    assert main(["audit", "explain", "HEAD~3", "HEAD~2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "params.finetune: finetune.lr 0.01 -> 0.02"
    differences = [line.rpartition("(")[2].rstrip(")") for line in lines[::2]]
    assert [line.split() for line in lines[1::2]] == [[d, "params.finetune"] for d in differences]
    assert "+0.0000" not in lines[2], "mAP moved"


@pytest.mark.long
def test_the_difference_of_two_runs_is_explained_by_its_causes(copy: Copy) -> None:
    """Another seed, and dropped rows removed: both move the metrics."""
    edit_params(copy.root, {"finetune": {"seed": 1}, "surgery": {"dropped": "remove"}})
    run_stages(copy.root, *STAGES[STAGES.index("check") :])
    commit(copy.root, "two causes")
    first, second = (open_revision(copy.root, name) for name in ("HEAD~1", "HEAD"))
    before = done(copy.root, "git", "status", "--porcelain"), path_md5(copy.root / "out")
    found = {item.metric: item for item in explain(first, second, notify=lambda line: None)}
    assert set(found) == {"map", "ap.box", "retention.person"}
    for item in found.values():
        assert set(item.shares) == {"params.finetune", "params.surgery"}
        assert sum(item.shares.values()) == pytest.approx(item.after - item.before)
    assert all(found["map"].shares.values()), "both have a share"
    # the experiment `bold` is the first run with the second's seed
    bold = json.loads(open_revision(copy.root, "bold").read_bytes("out/metrics.json"))["map"]
    item = found["map"]
    surgery_alone = bold - item.shares["params.finetune"] + item.shares["params.surgery"]
    expected = (bold - item.before + item.after - surgery_alone) / 2
    assert item.shares["params.finetune"] == pytest.approx(expected)
    after = done(copy.root, "git", "status", "--porcelain"), path_md5(copy.root / "out")
    assert after == before


@pytest.mark.long
def test_a_recompute_that_is_stopped_goes_on_where_it_was(copy: Copy) -> None:
    messages: list[str] = []

    def stop(line: str) -> None:
        messages.append(line)
        if line.startswith("report: running"):
            raise KeyboardInterrupt

    revision = open_revision(copy.root, "HEAD")
    with pytest.raises(KeyboardInterrupt):
        recompute(revision, start="predictions", notify=stop)
    messages.clear()
    results = recompute(revision, start="predictions", notify=messages.append)
    assert all(result.matches for result in results)
    assert messages[0] == "evaluate: was recomputed before"
    assert "report: running" in messages


def test_another_environment_is_refused_unless_asked_for(copy: Copy) -> None:
    copy.edit("requirements.lock", "safetensors==", "safetensors==0.0.")
    copy.amend()
    with pytest.raises(
        RevisionError, match=r"safetensors==0\.0\.\S+ pinned.*--environment differs"
    ):
        again(copy, stage="gate")
    (result,) = again(copy, stage="gate", environment="differs")
    assert result.matches


@pytest.mark.long
def test_data_imported_from_another_repository_are_brought_and_recomputed(
    copy: Copy, tmp_path: Path
) -> None:
    """In a clone that has nothing yet; the hint is carried out word for word."""
    other = tmp_path / "other"
    other.mkdir()
    done(other, "git", "init", "--quiet", "--initial-branch", "main")
    done(other, "git", "config", "user.email", "a@b.c")
    done(other, "git", "config", "user.name", "a")
    done(other, "dvc", "init", "--quiet")
    shutil.copytree(copy.root / "data" / "mine", other / "mine")
    done(other, "dvc", "add", "--quiet", "mine")
    commit(other, "data")
    done(copy.root, "dvc", "remove", "--quiet", "data/mine.dvc")
    shutil.rmtree(copy.root / "data" / "mine")
    done(copy.root, "dvc", "import", "--quiet", "../other", "mine", "--out", "data/mine")
    commit(copy.root, "imported")
    clone = tmp_path / "clone"
    done(tmp_path, "git", "clone", "--quiet", str(copy.root), str(clone))
    with pytest.raises(AuditError, match=r"inputs aren't in the cache: data/mine; `") as refused:
        again(Copy(clone), stage="validate")
    hint = str(refused.value).split("`")[1]
    assert hint == "dvc fetch data/mine.dvc"
    done(clone, *hint.split())
    (result,) = again(Copy(clone), stage="validate")
    assert result.matches, result
    assert done(clone, "git", "status", "--porcelain") == ""


def test_what_cannot_be_recomputed_is_reported(copy: Copy) -> None:
    with pytest.raises(AuditError, match=r"nothing: HEAD records no such stage\. It has: validate"):
        again(copy, stage="nothing")
    copy.object(tampering.PREDICTIONS, "finetuned.test.parquet").unlink()
    for tree in (copy.root / TREES).glob("*"):
        shutil.rmtree(tree)
    with pytest.raises(AuditError, match=r"inputs aren't in the cache.*no DVC remote is set up"):
        again(copy, stage="evaluate")
