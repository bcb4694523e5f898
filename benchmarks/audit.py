"""What the audit costs: `verify` against plain MD5 of the same files, `list` over a long history at
its first call, and the memory of `bundle` and `check`.

    python benchmarks/audit.py PROJECT [--mib 1024] [--commits 300] [--rounds 5] [--out FILE.json]

PROJECT has a run that is committed; it is cloned, and not changed.
"""

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from topwork.audit import objects
from topwork.audit.revision import Revision
from topwork.audit.verification import verify
from topwork.environment import environment_of

ROOT = Path(__file__).parents[1]
TOPWORK = [sys.executable, "-m", "topwork.cli"]
PREDICTIONS = "out/predict/predictions"
LAUNCH = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""A small process in between: a process's peak counts the memory of the one that started it."""


def done(folder: Path, *command: str, text: str | None = None) -> None:
    subprocess.run(command, cwd=folder, input=text, text=True, capture_output=True, check=True)


def new_project(folder: Path) -> None:
    folder.mkdir(parents=True)
    done(folder, "git", "init", "--quiet", "--initial-branch", "main")
    done(folder, "git", "config", "user.email", "benchmark@example.org")
    done(folder, "git", "config", "user.name", "benchmark")
    done(folder, "dvc", "init", "--quiet")


def measured(folder: Path, *arguments: str) -> tuple[float, float, float]:
    """Wall seconds, seconds of processor time and peak memory (MiB) of a topwork command."""
    begin = time.perf_counter()
    printed = subprocess.run(
        [sys.executable, "-c", LAUNCH, *TOPWORK, *arguments],
        cwd=folder,
        env=environment_of(ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    processor, memory = json.loads(printed.stdout)
    return time.perf_counter() - begin, processor, memory / 1024


# verify


def write_data(folder: Path, mib: int) -> None:
    """Half of it files of 100 KiB, as pictures are, half of it one file, as weights are."""
    stream = random.Random(0)
    (folder / "data" / "pictures").mkdir(parents=True)
    for number in range(mib * 1024 // 200):
        (folder / "data" / "pictures" / f"{number}.jpg").write_bytes(stream.randbytes(100 << 10))
    with (folder / "data" / "weights.safetensors").open("wb") as file:
        for _ in range(mib // 2):
            file.write(stream.randbytes(1 << 20))
    done(folder, "dvc", "add", "--quiet", "data/pictures", "data/weights.safetensors")
    done(folder, "git", "add", "--all")
    done(folder, "git", "commit", "--quiet", "--message", "data")


def plain_md5(paths: list[Path]) -> float:
    """Seconds of hashing files one after the other."""
    begin = time.perf_counter()
    for path in paths:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    return time.perf_counter() - begin


def verified(folder: Path) -> float:
    """Seconds of a verify that has hashed nothing before."""
    objects._SEEN.clear()
    begin = time.perf_counter()
    checks = verify(Revision(folder, "HEAD"), recompute=False)
    spent = time.perf_counter() - begin
    assert {check.status for check in checks} == {"holds"}
    return spent


def verify_rows(folder: Path, mib: int, rounds: int) -> list[dict[str, object]]:
    new_project(folder)
    write_data(folder, mib)
    paths = [path for path in (folder / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in paths) / (1 << 20)
    # in turns; the first round warms the disk cache
    pairs = [(plain_md5(paths), verified(folder)) for _ in range(rounds + 1)][1:]
    ratios = [plain / ours for plain, ours in pairs]
    wall, processor, memory = measured(folder, "audit", "verify", "HEAD", "--hashes-only")
    return [
        {
            "what": f"verify, {len(paths)} objects, {total:.0f} MiB",
            "plain MD5, MiB/s": round(total / statistics.median(p for p, _ in pairs)),
            "verify, MiB/s": round(total / statistics.median(o for _, o in pairs)),
            "ratio": round(statistics.median(ratios), 2),
            "ratio, from": round(min(ratios), 2),
            "ratio, to": round(max(ratios), 2),
        },
        {
            "what": "the command, `--hashes-only`",
            "seconds": round(wall, 1),
            "processor seconds": round(processor, 1),
            "peak memory, MiB": round(memory),
        },
    ]


# list


def write_history(folder: Path, commits: int) -> None:
    """Commits that all have another params.yaml, another lock and other metrics."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    lock = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    definition = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    stream = []
    for number in range(commits):
        files = {
            "params.yaml": f"{params}lr: {number}\n",
            "dvc.lock": f"{lock}# {number}\n",
            "dvc.yaml": definition,
            "out/metrics.json": json.dumps({"map": number / commits}),
            ".dvc/config": "",
        }
        stream.append(f"commit refs/heads/main\ncommitter a <a@b.c> {1700000000 + number} +0000\n")
        stream.append("data 1\nc\n")
        for name, content in files.items():
            stream.append(f"M 644 inline {name}\ndata {len(content.encode())}\n{content}\n")
    done(folder, "git", "fast-import", "--quiet", text="".join(stream))


def list_row(folder: Path, commits: int, rounds: int) -> dict[str, object]:
    new_project(folder)
    write_history(folder, commits)
    found = [measured(folder, "audit", "list") for _ in range(rounds)]
    return {
        "what": f"`audit list`, {commits} commits, a process each time",
        "seconds": round(statistics.median(wall for wall, _, _ in found), 1),
        "processor seconds": round(statistics.median(cpu for _, cpu, _ in found), 1),
        "peak memory, MiB": round(max(memory for _, _, memory in found)),
    }


# bundle


def cloned(project: Path, folder: Path) -> None:
    """A clone with a cache of its own."""
    done(project, "git", "clone", "--quiet", str(project), str(folder))
    shutil.copytree(project / ".dvc" / "cache" / "files", folder / ".dvc" / "cache" / "files")
    done(folder, "git", "config", "user.email", "benchmark@example.org")
    done(folder, "git", "config", "user.name", "benchmark")


def grow(folder: Path, mib: int) -> None:
    """Let the run's predictions have a further file, recorded as it should be."""
    revision = Revision(folder, "HEAD")
    out = revision.outs[PREDICTIONS]
    members = revision.members(out)
    scratch = folder / ".topwork" / "more"
    scratch.parent.mkdir(exist_ok=True)
    stream = random.Random(0)
    with scratch.open("wb") as file:
        for _ in range(mib):
            file.write(stream.randbytes(1 << 20))
    with scratch.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    members["more.bin"] = digest
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(members.items())]
    content = json.dumps(listing, sort_keys=True).encode()
    name = f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir"
    for md5, write in (
        (digest, lambda target: scratch.rename(target)),
        (name, lambda target: target.write_bytes(content)),
    ):
        target = revision.cached(md5)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target)
    size = sum(revision.cached(md5).stat().st_size for md5 in members.values())
    yaml, lock = YAML(), folder / "dvc.lock"
    document = yaml.load(lock.read_text(encoding="utf-8"))
    for stage in document["stages"].values():
        for entry in [*stage.get("deps", ()), *stage.get("outs", ())]:
            if entry["path"] == PREDICTIONS:
                entry |= {"md5": name, "size": size, "nfiles": len(members)}
    with lock.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    done(folder, "git", "commit", "--quiet", "--all", "--message", "more predictions")


def written(folder: Path) -> float:
    """Peak memory (MiB) of writing a bundle, without the computations of `verify`."""
    code = (
        "from pathlib import Path; from topwork.audit.bundle import write_bundle;"
        " from topwork.audit.revision import open_revision;"
        " write_bundle(open_revision(Path(), 'HEAD'), [], Path('alone.zip'))"
    )
    command = [sys.executable, "-c", LAUNCH, sys.executable, "-c", code]
    printed = subprocess.run(
        command, cwd=folder, env=environment_of(ROOT), stdout=subprocess.PIPE, check=True
    )
    return json.loads(printed.stdout)[1] / 1024


def bundle_rows(folder: Path, project: Path, mib: int) -> list[dict[str, object]]:
    cloned(project, folder)
    rows = []
    for what in ("as it is", f"with {mib} MiB more of predictions"):
        if rows:
            grow(folder, mib)
        for command in (
            ("bundle", "HEAD", "--output", "evidence.zip"),
            ("check", "evidence.zip"),
        ):
            wall, processor, memory = measured(folder, "audit", *command)
            row: dict[str, object] = {
                "what": f"`audit {command[0]}`, {what}",
                "seconds": round(wall, 1),
                "processor seconds": round(processor, 1),
                "peak memory, MiB": round(memory),
            }
            rows.append(row)
        rows.append(
            {
                "what": f"writing the bundle alone, {what}",
                "peak memory, MiB": round(written(folder)),
            }
        )
        rows[-1]["bundle, MiB"] = round((folder / "evidence.zip").stat().st_size / (1 << 20))
    return rows


def main() -> int:
    """Measure, print a line a figure, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--mib", type=int, default=1024, help="of objects, and of predictions")
    parser.add_argument("--commits", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="topwork-benchmark-") as name:
        top = Path(name)
        rows = [
            list_row(top / "list", arguments.commits, arguments.rounds),
            *verify_rows(top / "verify", arguments.mib, arguments.rounds),
            *bundle_rows(top / "bundle", arguments.project.resolve(), arguments.mib),
        ]
    for row in rows:
        print(
            "; ".join(
                f"{key} {value}" if key != "what" else str(value) for key, value in row.items()
            )
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
