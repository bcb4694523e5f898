"""Kinds of tampering with a recorded history: what is done, and what finds it.

Each kind edits a copy of the small history (`history.build`) and amends its newest commit, as
somebody would who wants it to look as if it had always been so. A forgery is *consistent* where
every hash fits: object, lock, and all that name it.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image, ImageOps
from ruamel.yaml import YAML

from conftest import done
from topwork.audit.revision import Revision
from topwork.surgery.keeping import keeping_receipt
from topwork.weights.format import Weights, read_weights, write_weights

METRICS = "out/metrics.json"
VERDICT = "out/evaluate/verdict.json"
WEIGHTS = "out/finetune/weights.safetensors"
GRAFTED = "out/surgery/grafted.safetensors"
PRETRAINED = "out/fetch/pretrained.safetensors"
PREDICTIONS = "out/predict/predictions"


class Copy:
    """A copy of the history that a kind of tampering works on."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def revision(self) -> Revision:
        return Revision(self.root, "HEAD")

    def object(self, path: str, member: str = "") -> Path:
        """The cached object of an out, or of a file in it; it may be written."""
        revision = self.revision
        out = revision.outs[path]
        md5 = revision.members(out)[member] if member else out.md5
        cached = revision.cached(str(md5))
        cached.parent.chmod(0o755)
        cached.chmod(0o644)
        return cached

    def read(self, path: str, member: str = "") -> bytes:
        if path in self.revision.tracked:
            return (self.root / path).read_bytes()
        return self.object(path, member).read_bytes()

    def edit(self, name: str, old: str, new: str, count: int = 1) -> None:
        """Replace text of a file that git keeps."""
        path = self.root / name
        text = path.read_text()
        assert old in text, f"{name} lacks {old}"
        path.write_text(text.replace(old, new, count))

    def commit(self, name: str, old: str, new: str) -> None:
        """The same in a commit of its own, as somebody would who hasn't run the pipeline yet."""
        self.edit(name, old, new)
        done(self.root, "git", "commit", "--quiet", "--all", "--message", "not run yet")

    def amend(self) -> None:
        done(self.root, "git", "commit", "--quiet", "--all", "--amend", "--no-edit")

    def lock(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the lock's stages."""
        path = self.root / "dvc.lock"
        yaml = YAML(typ="safe")
        yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
        document = yaml.load(path.read_text())
        change(document["stages"])
        with path.open("w") as stream:
            yaml.dump(document, stream)

    def put(self, content: bytes, suffix: str = "") -> str:
        """Put an object into the cache; its name."""
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
        cached = self.revision.cached(md5)
        cached.parent.mkdir(parents=True, exist_ok=True)
        if not cached.exists():
            cached.write_bytes(content)
        return md5

    def forge(self, path: str, content: bytes, member: str = "") -> None:
        """Replace an out, or a file in it, consistently: the object, the lock's out, and every dep
        on it.
        """
        size, files = len(content), None
        md5 = self.put(content)
        revision = self.revision
        if member:
            members = {**revision.members(revision.outs[path]), member: md5}
            if not content:
                del members[member]
            listing = [{"md5": m, "relpath": p} for p, m in sorted(members.items())]
            md5 = self.put(json.dumps(listing, sort_keys=True).encode(), ".dir")
            size = sum(revision.cached(m).stat().st_size for m in members.values())
            files = len(members)
        elif path in revision.tracked:
            (self.root / path).write_bytes(content)
        facts = {"md5": md5, "size": size} | ({"nfiles": files} if files is not None else {})

        def change(stages: dict[str, Any]) -> None:
            for stage in stages.values():
                for entry in [*stage.get("deps", ()), *stage.get("outs", ())]:
                    if entry["path"] == path:
                        entry.update(facts)

        self.lock(change)

    def forge_json(self, path: str, change: Callable[[Any], object], member: str = "") -> None:
        document = json.loads(self.read(path, member))
        change(document)
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.forge(path, text.encode(), member)

    def forge_table(
        self, path: str, change: Callable[[pd.DataFrame], pd.DataFrame], member: str = ""
    ) -> None:
        table = change(pd.read_parquet(io.BytesIO(self.read(path, member))))
        stream = io.BytesIO()
        table.to_parquet(stream, index=False, compression="zstd")
        self.forge(path, stream.getvalue(), member)

    def forge_weights(self, path: str, change: Callable[[Weights], None]) -> None:
        weights = read_weights(self.object(path), trust=True)
        change(weights)
        target = self.root / ".topwork" / "forged.safetensors"
        write_weights(target, weights)
        self.forge(path, target.read_bytes())


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        name: as the threat table of docs/audit.md has it.
        tamper: what is done; the commit is amended afterwards.
        found: what finds it: `verify`, the start of a recompute, or `not at all`.
        status: what verify says: `broken`, `stale`, `unchecked`, or `holds`.
        at: (stage, words of `what` or of the message) of the check that names it.
        error: words of the error, where verify can't go on.
    """

    name: str
    tamper: Callable[[Copy], object]
    at: tuple[str, str] = ("", "")
    status: str = "broken"
    found: str = "verify"
    error: str = ""

    @property
    def finder(self) -> str:
        """What finds it, as the threat table says it."""
        if self.found == "not at all":
            return self.found
        if self.found != "verify":
            return f"recompute --from {self.found}"
        if self.error:
            return "verify: an error"
        return {"broken": "verify", "holds": "nothing to find"}.get(
            self.status, f"verify: {self.status}"
        )


def entry(stages: dict[str, Any], stage: str, kind: str, path: str) -> dict[str, Any]:
    return next(entry for entry in stages[stage][kind] if entry["path"] == path)


def drop(stages: dict[str, Any], stage: str, kind: str, path: str) -> None:
    stages[stage][kind].remove(entry(stages, stage, kind, path))


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def better(document: dict[str, Any]) -> None:
    document["map"] = 0.93


def hide_everything(copy: Copy) -> None:
    """Forged metrics, and a lock that only lists what nobody can check."""
    copy.forge_json(METRICS, better)
    copy.lock(lambda s: [s[name].update(deps=[], outs=[], params={}) for name in s])


def hide_deps(copy: Copy) -> None:
    copy.lock(lambda s: [s[name].pop("deps", None) for name in s])


def pass_the_gate(copy: Copy) -> None:
    """A verdict that never was, and a gate that it passes."""

    def passes(verdict: dict[str, Any]) -> None:
        verdict["contracts"][0].update(found=200.0, finetuned=1.0)

    copy.forge_json(VERDICT, passes)
    copy.forge("out/gate/verdict.json", copy.read(VERDICT))


def nudge(weights: Weights) -> None:
    name = next(n for n, t in weights.state_dict.items() if t.is_floating_point() and t.dim() > 1)
    weights.state_dict[name] = weights.state_dict[name] + torch.tensor(0.01)


def forge_weights_and_what_names_them(copy: Copy) -> None:
    copy.forge_weights(WEIGHTS, nudge)
    sha256 = hashlib.sha256(copy_bytes(copy, WEIGHTS)).hexdigest()
    copy.forge_json("out/predict/record.json", lambda d: d["weights"].update(finetuned=sha256))
    receipt = keeping_receipt(copy_path(copy, PRETRAINED), copy_path(copy, WEIGHTS))
    copy.forge_json("out/finetune/receipt.json", lambda d: d.update(receipt.document()))


def copy_bytes(copy: Copy, path: str) -> bytes:
    """An out by the lock as it lies in the working tree, committed or not."""
    return copy_path(copy, path).read_bytes()


def copy_path(copy: Copy, path: str) -> Path:
    stages = YAML(typ="safe").load((copy.root / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return copy.revision.cached(outs[path])


def swap(copy: Copy) -> None:
    def change(stages: dict[str, Any]) -> None:
        grafted, tuned = (
            entry(stages, "surgery", "outs", GRAFTED),
            entry(stages, "finetune", "outs", WEIGHTS),
        )
        grafted["md5"], tuned["md5"] = tuned["md5"], grafted["md5"]

    copy.lock(change)


def roll_back(copy: Copy) -> None:
    """The entry of an earlier training, with today's predictions."""
    text = done(copy.root, "git", "show", "HEAD~3:dvc.lock")
    older = YAML(typ="safe").load(text)["stages"]["finetune"]
    copy.lock(lambda s: s.update(finetune=older))


def replaced(copy: Copy) -> None:
    """git shows another content of params.yaml."""
    (copy.root / "other.yaml").write_text((copy.root / "params.yaml").read_text() + "# other\n")
    blob = done(copy.root, "git", "rev-parse", "HEAD:params.yaml").strip()
    other = done(copy.root, "git", "hash-object", "-w", "other.yaml").strip()
    (copy.root / "other.yaml").unlink()
    done(copy.root, "git", "replace", blob, other)


def code_everywhere(copy: Copy) -> None:
    """A line of code, and its hash wherever the lock has it."""
    path = "src/topwork/training/schedule.py"
    (copy.root / path).write_text((copy.root / path).read_text() + "# a word mended\n")
    redo_folder(copy, "src/topwork/training")


def redo_folder(copy: Copy, folder: str) -> None:
    from topwork.files import path_md5

    files = [p for p in (copy.root / folder).rglob("*") if p.is_file()]
    files = [p for p in files if "__pycache__" not in p.parts]
    for stray in (copy.root / folder).rglob("__pycache__"):
        for file in stray.iterdir():
            file.unlink()
        stray.rmdir()
    md5, size = path_md5(copy.root / folder), sum(p.stat().st_size for p in files)

    def change(stages: dict[str, Any]) -> None:
        for stage in stages.values():
            for item in stage.get("deps", ()):
                if item["path"] == folder:
                    item.update(md5=md5, size=size)

    copy.lock(change)


def rate_everywhere(copy: Copy) -> None:
    copy.edit("params.yaml", "lr: 0.02", "lr: 0.01")
    for stage in ("check", "finetune", "report"):
        copy.lock(lambda s, at=stage: s[at]["params"]["params.yaml"]["finetune"].update(lr=0.01))
    redraw(copy)


def redraw(copy: Copy) -> None:
    """The report of a forged run, drawn again from the forgery."""
    from topwork.audit.revision import RevisionFiles
    from topwork.report.page import render_report
    from topwork.report.run import Run

    copy.amend()
    revision = copy.revision
    text = render_report(Run(RevisionFiles(revision), revision.params))
    copy.forge("out/report/report.html", text.encode())


def forge_data(copy: Copy) -> None:
    """Another picture, in DVC's file and in every dep on the data."""
    revision = copy.revision
    out = revision.outs["data/mine"]
    stream = io.BytesIO()
    path = revision.cached(revision.members(out)["images/train_0.png"])
    ImageOps.mirror(Image.open(path)).save(stream, "PNG")
    picture = stream.getvalue()
    more = len(picture) - path.stat().st_size
    members = {**revision.members(out), "images/train_0.png": copy.put(picture)}
    listing = [{"md5": m, "relpath": p} for p, m in sorted(members.items())]
    md5 = copy.put(json.dumps(listing, sort_keys=True).encode(), ".dir")
    copy.edit("data/mine.dvc", str(out.md5), md5)
    copy.edit("data/mine.dvc", f"size: {out.size}", f"size: {(out.size or 0) + more}")

    def change(stages: dict[str, Any]) -> None:
        for stage in stages.values():
            for item in stage["deps"]:
                if item["path"] == "data/mine":
                    item.update(md5=md5, size=(out.size or 0) + more)

    copy.lock(change)
    redraw(copy)


def move_boxes(split: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["split"] == split, "x"] += 7.0
        return table

    return change


def forge_training_boxes(copy: Copy) -> None:
    copy.forge_table("out/validate/annotations.parquet", move_boxes("val"))
    sha256 = hashlib.sha256(copy_bytes(copy, "out/validate/annotations.parquet")).hexdigest()
    copy.forge_json("out/finetune/record.json", lambda d: d["inputs"].update(annotations=sha256))
    redraw(copy)


def forge_predictions(copy: Copy) -> None:
    """Scores that look better, and all that is computed from them."""
    from topwork.audit.revision import Revision

    def surer(table: pd.DataFrame) -> pd.DataFrame:
        table["score"] = (table["score"] + 1) / 2
        return table

    copy.forge_table(PREDICTIONS, surer, "finetuned.test.parquet")
    copy.amend()
    rewrite_from_predictions(copy, Revision(copy.root, "HEAD"))


def rewrite_from_predictions(copy: Copy, revision: Revision) -> None:
    """COCO results, metrics, verdict, page and gate of forged predictions, by the stages."""
    import contextlib
    import tempfile

    from topwork.audit.rederivation import _link
    from topwork.dataset.tables import Tables
    from topwork.inference.outputs import write_predictions
    from topwork.params.section import parse
    from topwork.stages import evaluate, gate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for out in revision.outs.values():
            if out.path.startswith(("out/validate", "out/baseline/predictions", PREDICTIONS)):
                _link(revision, out, folder / out.path)
        table = pd.read_parquet(folder / PREDICTIONS / "finetuned.test.parquet")
        plan = revision.params.surgery.plan()
        labels = {name: label for label, name in enumerate(plan.names, start=1)}
        stem = folder / "again" / "finetuned.test"
        tables = Tables.read(folder / "out/validate", segmentation=False)
        write_predictions(stem, table, tables, "test", labels)
        copy.forge(PREDICTIONS, stem.with_suffix(".test.json").read_bytes(), "finetuned.test.json")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.run(parse(evaluate.Params, revision.params_document()), folder)
            (folder / "out/report").mkdir()
            (folder / "out/report/report.html").touch()
            gate.run(parse(gate.Params, revision.params_document()), folder)
        for out in revision.stages["evaluate"].outs:
            path = folder / out.path
            if path.is_dir():
                for file in (file for file in path.rglob("*") if file.is_file()):
                    copy.amend()
                    copy.forge(out.path, file.read_bytes(), file.relative_to(path).as_posix())
            else:
                copy.forge(out.path, path.read_bytes())
        copy.forge("out/gate/verdict.json", (folder / "out/gate/verdict.json").read_bytes())
    redraw(copy)


def reorder_classes(copy: Copy) -> None:
    """Labels follow the order of the classes."""
    copy.edit(
        "params.yaml", "classes: {person: keep, box: new}", "classes: {box: new, person: keep}"
    )

    def change(stages: dict[str, Any]) -> None:
        for stage in stages.values():
            for key, value in stage.get("params", {}).get("params.yaml", {}).items():
                classes = value["classes"] if key == "surgery" else value
                if key.startswith("surgery"):
                    classes["person"] = classes.pop("person")  # now the last

    copy.lock(change)


def spoil_git_object(copy: Copy) -> None:
    """The file of an object in git, with another content."""
    import zlib

    blob = done(copy.root, "git", "rev-parse", "HEAD:params.yaml").strip()
    path = copy.root / ".git" / "objects" / blob[:2] / blob[2:]
    content = (copy.root / "params.yaml").read_bytes().replace(b"lr: 0.02", b"lr: 0.03")
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"blob %d\0" % len(content) + content))


def listing_outside(copy: Copy) -> None:
    listing = json.dumps([{"md5": "0" * 32, "relpath": "../../stolen"}]).encode()
    md5 = copy.put(listing, ".dir")
    copy.lock(lambda s: entry(s, "evaluate", "outs", "out/evaluate/plots").update(md5=md5))


def frozen(copy: Copy) -> None:
    command = "cmd: python -m topwork.stages.evaluate"
    copy.edit("dvc.yaml", command, f"{command}\n    frozen: true")


def garbage(copy: Copy, text: str) -> None:
    (copy.root / "dvc.lock").write_text(text)


def surplus_stage(copy: Copy) -> None:
    copy.lock(lambda s: s.update(bonus={"cmd": "true", "outs": list(s["gate"]["outs"])}))


def first_member(copy: Copy, path: str) -> str:
    return next(iter(copy.revision.members(copy.revision.outs[path])))


KINDS = [
    # the cache
    Kind("a byte of a cached file", lambda c: flip(c.object(WEIGHTS)), ("finetune", WEIGHTS)),
    Kind(
        "a byte of a file in a cached folder",
        lambda c: flip(c.object(PREDICTIONS, "finetuned.test.json")),
        ("predict", PREDICTIONS),
    ),
    Kind(
        "a cached folder's listing",
        lambda c: c.object(PREDICTIONS).write_bytes(b"[]"),
        ("predict", PREDICTIONS),
    ),
    Kind(
        "a cached listing that isn't one",
        lambda c: c.object(PREDICTIONS).write_bytes(b"{{"),
        ("predict", PREDICTIONS),
    ),
    Kind(
        "a cached file cut short",
        lambda c: c.object(GRAFTED).write_bytes(c.object(GRAFTED).read_bytes()[:100]),
        ("surgery", GRAFTED),
    ),
    Kind(
        "a cached file that is gone",
        lambda c: c.object(WEIGHTS).unlink(),
        ("finetune", WEIGHTS),
        "unchecked",
    ),
    Kind(
        "a file of a cached folder that is gone",
        lambda c: c.object(PREDICTIONS, "finetuned.test.json").unlink(),
        ("predict", PREDICTIONS),
        "unchecked",
    ),
    Kind(
        "a listing that points outside of its folder",
        listing_outside,
        ("evaluate", "out out/evaluate/plots"),
    ),
    # the lock
    Kind(
        "a hash in the lock",
        lambda c: c.lock(lambda s: entry(s, "evaluate", "outs", METRICS).update(md5="0" * 32)),
        ("evaluate", METRICS),
    ),
    Kind("two hashes in the lock, exchanged", swap, ("report", GRAFTED)),
    Kind(
        "a size in the lock",
        lambda c: c.lock(lambda s: entry(s, "finetune", "outs", WEIGHTS).update(size=7)),
        ("finetune", "7 bytes in the record"),
    ),
    Kind(
        "a count of files in the lock",
        lambda c: c.lock(lambda s: entry(s, "predict", "outs", PREDICTIONS).update(nfiles=7)),
        ("predict", "7 files in the record"),
    ),
    Kind(
        "the size of a dep",
        lambda c: c.lock(lambda s: entry(s, "evaluate", "deps", PREDICTIONS).update(size=7)),
        ("evaluate", f"dep {PREDICTIONS}"),
    ),
    Kind(
        "a hash taken out of the lock",
        lambda c: c.lock(lambda s: entry(s, "evaluate", "outs", METRICS).pop("md5")),
        ("evaluate", f"out {METRICS}"),
    ),
    Kind(
        "a dep taken out of the lock",
        lambda c: c.lock(lambda s: drop(s, "evaluate", "deps", PREDICTIONS)),
        ("evaluate", f"dep {PREDICTIONS}"),
    ),
    Kind("all deps taken out of the lock", hide_deps, ("evaluate", "dep src/topwork/evaluation")),
    Kind(
        "an out taken out of the lock",
        lambda c: c.lock(lambda s: drop(s, "evaluate", "outs", METRICS)),
        ("evaluate", f"out {METRICS}"),
    ),
    Kind(
        "forged metrics, and a lock that lists nothing",
        hide_everything,
        ("evaluate", f"out {METRICS}"),
    ),
    Kind(
        "a param taken out of the lock",
        lambda c: c.lock(lambda s: s["evaluate"]["params"]["params.yaml"].pop("retention")),
        ("evaluate", "retention: the lock lacks it"),
    ),
    Kind(
        "all params taken out of the lock",
        lambda c: c.lock(lambda s: s["evaluate"].pop("params")),
        ("evaluate", "params params.yaml"),
    ),
    Kind(
        "a value of a param in the lock",
        lambda c: c.lock(
            lambda s: s["evaluate"]["params"]["params.yaml"]["evaluate"].update(bootstrap=99)
        ),
        ("evaluate", "evaluate.bootstrap: 12 in the file, 99 in the record"),
    ),
    Kind(
        "another kind of number in the lock",
        lambda c: c.lock(
            lambda s: s["evaluate"]["params"]["params.yaml"]["evaluate"].update(bootstrap=12.0)
        ),
        ("evaluate", "evaluate.bootstrap"),
    ),
    Kind(
        "a surplus dep in the lock",
        lambda c: c.lock(lambda s: s["gate"]["deps"].append(dict(s["gate"]["deps"][0], path="x"))),
        ("gate", "dep x"),
    ),
    Kind(
        "a surplus out in the lock",
        lambda c: c.lock(lambda s: s["gate"]["outs"].append(dict(s["gate"]["outs"][0], path="x"))),
        ("gate", "out x"),
    ),
    Kind(
        "a surplus param in the lock",
        lambda c: c.lock(lambda s: s["gate"]["params"]["params.yaml"].update(predict={})),
        ("gate", "predict: dvc.yaml doesn't track it"),
    ),
    Kind(
        "a dep that stands in the lock twice",
        lambda c: c.lock(lambda s: s["gate"]["deps"].append(s["gate"]["deps"][0])),
        ("gate", "the lock has it twice"),
    ),
    Kind(
        "a stage taken out of the lock",
        lambda c: c.lock(lambda s: s.pop("evaluate")),
        ("evaluate", "entry"),
    ),
    Kind(
        "the last stage taken out of the lock",
        lambda c: c.lock(lambda s: s.pop("gate")),
        ("gate", "entry"),
    ),
    Kind("a surplus stage in the lock", surplus_stage, ("bonus", "entry")),
    Kind("an out that two stages have", surplus_stage, ("bonus", "out out/gate/verdict.json")),
    Kind(
        "an entry rolled back to an earlier run",
        roll_back,
        ("finetune", "finetune.lr: 0.02 in the file, 0.01 in the record"),
    ),
    Kind(
        "a command in the lock",
        lambda c: c.lock(lambda s: s["evaluate"].update(cmd="true")),
        ("evaluate", "cmd"),
    ),
    Kind(
        "a key that stands in the lock twice",
        lambda c: c.edit("dvc.lock", "schema: '2.0'", "schema: '2.0'\nschema: '2.0'"),
        ("the record", "keys"),
    ),
    Kind(
        "a lock of another kind of hash",
        lambda c: c.lock(lambda s: entry(s, "gate", "outs", "out/gate/verdict.json").pop("hash")),
        ("gate", "DVC 2 or older recorded it"),
        "unchecked",
    ),
    Kind("a lock that isn't YAML", lambda c: garbage(c, "a: ["), error="not readable as YAML"),
    Kind(
        "a lock of other shapes",
        lambda c: garbage(c, "schema: '2.0'\nstages: {gate: {deps: [3]}}\n"),
        error="dvc.lock at HEAD: stages.gate.deps.0 is 3",
    ),
    Kind("a lock without schema", lambda c: garbage(c, "gate: {}\n"), error="has no `schema`"),
    # what git keeps
    Kind(
        "a command in dvc.yaml",
        lambda c: c.edit("dvc.yaml", "topwork.stages.evaluate", "topwork.stages.other"),
        ("evaluate", "cmd"),
    ),
    Kind("a frozen stage", frozen, ("evaluate", "frozen")),
    Kind(
        "a key that stands in dvc.yaml twice",
        lambda c: c.edit("dvc.yaml", "    desc: measure", "    desc: x\n    desc: measure"),
        ("the record", "keys"),
    ),
    Kind(
        "a key that stands in params.yaml twice",
        lambda c: c.edit(
            "params.yaml", "report: {pictures: 1}", "report: {pictures: 1}\nreport: {}"
        ),
        ("the record", "keys"),
    ),
    Kind(
        "a param in params.yaml",
        lambda c: c.edit("params.yaml", "bootstrap: 12", "bootstrap: 13"),
        ("evaluate", "evaluate.bootstrap: 13 in the file, 12 in the record"),
    ),
    Kind(
        "a param in params.yaml, of a stage that ran earlier",
        lambda c: c.commit("params.yaml", "lr: 0.02", "lr: 0.03"),
        ("finetune", "it ran last at"),
        "stale",
    ),
    Kind(
        "code",
        lambda c: c.edit("src/topwork/evaluation/retention.py", '"""', '"""\n'),
        ("evaluate", "dep src/topwork/evaluation"),
    ),
    Kind(
        "code of a stage that ran earlier",
        lambda c: c.commit("src/topwork/training/schedule.py", '"""', '"""\n'),
        ("finetune", "dep src/topwork/training"),
        "stale",
    ),
    Kind(
        "metrics in git",
        lambda c: c.edit(METRICS, '"map": 0', '"map": 1'),
        ("evaluate", f"out {METRICS}"),
    ),
    Kind(
        "metrics taken out of git",
        lambda c: (c.root / METRICS).unlink(),
        ("evaluate", f"out {METRICS}"),
    ),
    Kind(
        "the hash of the data in their .dvc file",
        lambda c: c.edit("data/mine.dvc", "md5: ", "md5: 0000"),
        ("report", "dep data/mine"),
    ),
    Kind("an object in git", spoil_git_object, error="its content has the hash"),
    Kind("an object that `git replace` shows as another", replaced, ("", ""), "holds"),
    # consistent forgeries that are computed again in seconds
    Kind(
        "metrics, consistently", lambda c: c.forge_json(METRICS, better), ("evaluate", "map is 0.")
    ),
    Kind(
        "a metric left out, consistently",
        lambda c: c.forge_json(METRICS, lambda d: d.pop("map")),
        ("evaluate", "map isn't recorded"),
    ),
    Kind(
        "the class table, consistently",
        lambda c: c.forge_json("out/evaluate/classes.json", lambda d: d.update(bootstrap=1)),
        ("evaluate", "classes.json"),
    ),
    Kind("a breached verdict that passes, consistently", pass_the_gate, ("evaluate", VERDICT)),
    Kind(
        "the gate's verdict, consistently",
        lambda c: c.forge_json("out/gate/verdict.json", lambda d: d["contracts"].clear()),
        ("gate", "contracts"),
    ),
    Kind(
        "a plot, consistently",
        lambda c: c.forge("out/evaluate/plots", b"forged\n", first_member(c, "out/evaluate/plots")),
        ("evaluate", "out/evaluate/plots/"),
    ),
    Kind(
        "grafted weights, consistently",
        lambda c: c.forge_weights(GRAFTED, nudge),
        ("surgery", GRAFTED),
    ),
    Kind(
        "the receipt, consistently",
        lambda c: c.forge_json(
            "out/surgery/receipt.json", lambda d: d["dropped"].update(exact=False)
        ),
        ("surgery", "dropped.exact"),
    ),
    Kind(
        "pretrained weights, consistently",
        lambda c: c.forge_weights("out/fetch/pretrained.safetensors", nudge),
        ("surgery", "out/surgery"),
    ),
    Kind("the order of the classes, consistently", reorder_classes, ("surgery", "out/surgery")),
    Kind(
        "provenance, consistently",
        lambda c: c.forge_json("out/fetch/provenance.json", lambda d: d.update(values=1)),
        ("fetch", "values"),
    ),
    Kind(
        "weights.lock, consistently",
        lambda c: c.forge("weights.lock", f'"weights/tiny.safetensors": "{"0" * 64}"\n'.encode()),
        ("fetch", "weights.lock has 0000"),
    ),
    Kind(
        "splits, consistently",
        lambda c: c.forge(
            "out/validate/splits.csv",
            c.read("out/validate/splits.csv") + b"a,test,train_0.png\n",
        ),
        ("validate", "splits.csv"),
    ),
    Kind(
        "counts of the data, consistently",
        lambda c: c.forge_json("out/validate/summary.json", lambda d: d.update(images_test=400)),
        ("validate", "images_test"),
    ),
    Kind(
        "annotations of the test set, consistently",
        lambda c: c.forge_table("out/validate/annotations.parquet", move_boxes("test")),
        ("evaluate", "recorded"),
    ),
    Kind(
        "unlabelled objects, consistently",
        lambda c: c.forge_json("out/unlabelled/findings.json", lambda d: d.update(count=9)),
        ("unlabelled", "count"),
    ),
    Kind(
        "the check's verdict, consistently",
        lambda c: c.forge_json("out/check/verdict.json", lambda d: d.update(checked=["all"])),
        ("check", "checked"),
    ),
    Kind(
        "COCO results, consistently",
        lambda c: c.forge(PREDICTIONS, b"[]\n", "finetuned.test.json"),
        ("predict", "finetuned.test.json"),
    ),
    Kind(
        "the hash of the weights in the predictions' record, consistently",
        lambda c: c.forge_json(
            "out/predict/record.json", lambda d: d["weights"].update(finetuned="0" * 64)
        ),
        ("predict", "weights.finetuned"),
    ),
    Kind(
        "the report, consistently",
        lambda c: c.forge("out/report/report.html", c.read("out/report/report.html") + b"<p>"),
        ("report", "out/report/report.html"),
    ),
    Kind(
        "epochs in the training's record, consistently",
        lambda c: c.forge_json("out/finetune/record.json", lambda d: d.update(epochs=100)),
        ("finetune", "epochs"),
    ),
    # consistent forgeries that take a model to be found
    Kind(
        "predictions and all that comes of them",
        forge_predictions,
        status="holds",
        found="weights",
    ),
    Kind(
        "fine-tuned weights and all that names them",
        lambda c: (forge_weights_and_what_names_them(c), redraw(c)),
        status="holds",
        found="weights",
    ),
    Kind(
        "the training's record and the report",
        lambda c: (
            c.forge_json("out/finetune/record.json", lambda d: d.update(notes=["calm"])),
            redraw(c),
        ),
        status="holds",
        found="training",
    ),
    Kind("a param and its records", rate_everywhere, status="holds", found="training"),
    Kind(
        "annotations of the validation set and their records",
        forge_training_boxes,
        status="holds",
        found="data",
    ),
    Kind("a picture and its records", forge_data, status="holds", found="data"),
    # what nothing finds
    Kind(
        "a history rewritten by its owner",
        lambda c: done(
            c.root,
            "git",
            "commit",
            "--quiet",
            "--amend",
            "--date",
            "2020-01-01T00:00:00Z",
            "--message",
            "long ago",
        ),
        status="holds",
        found="not at all",
    ),
]
