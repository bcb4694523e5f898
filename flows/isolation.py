"""A revision in a git worktree of its own: its code, its data, its params, and the record of what
became of it.

The worktree shares the project's DVC cache and its checkpoints. It is named after what is run
(commit, params, data), so that a run that was killed is gone on with by the next one of the same.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.repo import Repo

from topwork.environment import environment_of
from topwork.project.runs import RUNS, carry

Keep = Literal["experiment", "branch"]
"""How a result is kept: as a DVC experiment, or as a commit on a branch."""
CHECK = Path(__file__).with_name("check_params.py")
SHARED = ("scratch", "findings")
"""Folders of .topwork that a worktree has in common with the project: checkpoints, findings of
refused data.
"""
RUN_REFS = "refs/topwork/runs"
"""Where git keeps the records of a kept result's stages (who ran what, when, in which environment),
for other machines: a tree of files, named as the result.
"""
REPORT = Path("out/report/report.html")
GIT_REMOTE = "origin"
KEY = "Topwork-Key"
WHY = "Topwork-Failed"
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
GIT = ("git", "-c", "core.hooksPath=/dev/null")
"""A hook of the user's (`dvc install` sets some) is about the user's own working tree."""


class RunError(RuntimeError):
    """A run can't go on; the message says where, what was found, and what to do."""


def git(folder: Path, *arguments: str, given: str | None = None, **environment: str) -> str:
    """Run git; its output. `given` is its standard input.

    Raises:
        RunError: git fails; the message is git's own.
    """
    # a git hook that starts a run says by these where it was called
    inherited = {name: value for name, value in os.environ.items() if name not in GIT_PLACES}
    done = subprocess.run(
        [*GIT, *arguments],
        cwd=folder,
        env={**inherited, "GIT_TERMINAL_PROMPT": "0", **environment},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit_of(root: Path, revision: str) -> str:
    """The commit of a revision.

    Raises:
        RunError: there is none; the newest commits are named.
    """
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except RunError:
        pass
    try:
        newest = git(root, "log", "--oneline", "--all", "-5").replace("\n", "; ")
    except RunError as error:
        raise RunError(
            f"{root}: isn't in a git repository, so that no revision of it can be run. Run"
            " `git init` and commit, or run the pipeline in place."
        ) from error
    raise RunError(
        f"{revision}: no such revision in {root}. The newest commits are: {newest}. If it is on"
        " the remote, let the run fetch it (pull: true)."
    )


def data_now(root: Path) -> dict[str, str]:
    """Data tracked by .dvc files whose content isn't what git's .dvc file says: .dvc file -> hash
    of the content now (`update` for an import whose source has changed).
    """
    found = {}
    with Repo(str(root)) as repo:
        for stage in _sources(repo):
            target = os.path.relpath(stage.path, root)
            if stage.is_import:
                changed = any(
                    "update available" in str(item)
                    for items in repo.status(targets=[stage.path]).values()
                    for item in items
                )
                if changed:
                    found[target] = "update"
                continue
            before = [out.hash_info.value for out in stage.outs]
            if all(out.exists for out in stage.outs):
                stage.save()
                after = [out.hash_info.value for out in stage.outs]
                if after != before or _committed(root, target) != Path(stage.path).read_text():
                    found[target] = "+".join(map(str, after))
    return found


def _committed(root: Path, path: str) -> str | None:
    done = subprocess.run(
        [*GIT, "show", f"HEAD:./{path}"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def _sources(repo: Any) -> list[Any]:
    return [stage for stage in repo.index.stages if stage.is_data_source or stage.is_import]


@dataclass
class Isolated:
    """A run of one revision, apart from whoever edits the project meanwhile.

    Attributes:
        root: the project.
        commit: what is run.
        params: dotted key of params.yaml -> value that it has in this run.
        data: .dvc files whose content is taken from the project's folder as it is now (`data_now`).
        label: what kind of run it is (`nightly`), for names.
    """

    root: Path
    commit: str
    params: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    label: str = "run"

    @cached_property
    def key(self) -> str:
        """Names what is run: runs of one key end in the same bits."""
        about = json.dumps([self.commit, dict(self.params), dict(self.data)], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:12]

    @cached_property
    def worktree(self) -> Path:
        """Where git's worktree lies."""
        return self.root / ".topwork" / "worktrees" / f"{self.commit[:7]}-{self.key[:6]}"

    @cached_property
    def tree(self) -> Path:
        """The project in that worktree."""
        return self.worktree / git(self.root, "rev-parse", "--show-prefix")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands: the revision's code first, nothing of the project's
        working tree.
        """
        entries = []
        for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
            path = Path(entry).resolve()
            if path.is_relative_to(self.root) and not path.is_relative_to(self.worktree):
                path = self.tree / path.relative_to(self.root)
            entries.append(str(path))
        return command_environment(self.tree, PYTHONPATH=os.pathsep.join(entries))

    def open(self) -> bool:
        """Make the worktree, or find the one that a killed run of the same left.

        Returns:
            Whether a killed run is gone on with.

        Raises:
            RunError: a param can't be set, or isn't one that the revision knows.
        """
        resumed = (self.worktree / ".git").exists() and self._is_worktree()
        if not resumed:
            self.close()
            self.worktree.parent.mkdir(parents=True, exist_ok=True)
            git(
                self.root, "worktree", "add", "--quiet", "--detach", str(self.worktree), self.commit
            )
            if earlier := self.earlier():
                git(self.worktree, "checkout", "--quiet", earlier, "--", ".")
        if not (self.tree / "dvc.yaml").is_file():
            self.close()
            raise RunError(
                f"{self.commit[:7]}: no dvc.yaml in this revision. Is it older than the project?"
            )
        self._share()
        try:
            if self.params:
                set_params(self.tree / "params.yaml", self.params)
            self._check_params()
        except RunError:
            self.close()
            raise
        return resumed

    def _is_worktree(self) -> bool:
        try:
            return git(self.worktree, "rev-parse", "HEAD") == self.commit
        except RunError:
            return False

    def earlier(self) -> str | None:
        """The reference of the newest kept result of the same run, None where there is none."""
        listing = git(
            self.root,
            "for-each-ref",
            "--sort=-committerdate",
            f"--format=%(refname) %(contents:trailers:key={KEY},valueonly,separator=)",
            f"refs/exps/{self.commit[:2]}/{self.commit[2:]}",
            f"refs/heads/{self.label}",
        )
        refs = [line.split() for line in listing.splitlines()]
        return next((ref for ref, *key in refs if key == [self.key]), None)

    def fetch_records(self) -> None:
        """Fetch what other machines have kept of this commit, and the records of their runs."""
        refs = (f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/*", f"{RUN_REFS}/*")
        git(self.root, "fetch", "--quiet", GIT_REMOTE, *(f"{ref}:{ref}" for ref in refs))
        (self.root / RUNS).mkdir(parents=True, exist_ok=True)
        for ref in git(self.root, "for-each-ref", "--format=%(refname)", RUN_REFS).splitlines():
            for name in git(self.root, "ls-tree", "--name-only", ref).splitlines():
                target = self.root / RUNS / Path(name).name
                if target.suffix == ".json" and not target.exists():
                    target.write_text(git(self.root, "cat-file", "blob", f"{ref}:{name}") + "\n")

    def run_ref(self) -> str:
        """The reference of the newest kept result's records of stages; empty where it has none."""
        if not (earlier := self.earlier()):
            return ""
        return git(
            self.root, "for-each-ref", "--format=%(refname)", f"{RUN_REFS}/{self.name_of(earlier)}"
        )

    def _share(self) -> None:
        """Let the worktree use the project's DVC cache, remotes and checkpoints; all of it is a
        local setting, never committed.
        """
        with Repo(str(self.root)) as repo:
            cache = repo.cache.local_cache_dir
            # a remote's folder may be written relative to the project: these are absolute
            levels = [repo.config.load_one(level) for level in ("repo", "local")]
            remotes: dict[str, dict[str, Any]] = {}
            for level in levels:
                for name, values in (level.get("remote") or {}).items():
                    remotes.setdefault(name, {}).update(values)
            default = repo.config["core"].get("remote")
            kind = repo.config["cache"].get("type")
        with Repo(str(self.tree)) as repo, repo.config.edit("local") as local:
            local["cache"] = {"dir": cache, **({"type": kind} if kind else {})}
            local["remote"] = remotes
            local["core"] = {"remote": default} if default else {}
        for name in SHARED:
            folder = self.root / ".topwork" / name
            folder.mkdir(parents=True, exist_ok=True)
            link = self.tree / ".topwork" / name
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(folder)

    def _check_params(self) -> None:
        """Hold params.yaml against the typed model of the revision, before anything starts."""
        if not (self.tree / "params.yaml").is_file():
            return
        done = subprocess.run(
            [sys.executable, "-P", str(CHECK)],
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["the check of params.yaml failed"]
            raise RunError(f"{self.commit[:7]}: {lines[-1].removeprefix('error: ')}")

    def take_data(self) -> None:
        """Take over the content of `data` as the project's folder has it now."""
        for target, found in self.data.items():
            if found == "update":
                dvc(self.tree, self.environment, "update", "--quiet", target)
                continue
            with Repo(str(self.tree)) as repo:
                (stage,) = repo.stage.load_file(str(self.tree / target))
                if "+".join(str(out.hash_info.value) for out in stage.outs) == found:
                    continue
                outs = [Path(os.path.relpath(out.fs_path, self.tree)) for out in stage.outs]
            for out in outs:
                remove(self.tree / out)
                (self.tree / out).parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (self.root / out).is_dir() else shutil.copy2
                copy(self.root / out, self.tree / out)
            dvc(self.tree, self.environment, "commit", "--quiet", "--force", target)

    def absent(self, only_sources: bool = False) -> list[str]:
        """Outs that git's records name and that aren't there; `only_sources`: data that no stage
        makes.
        """
        with Repo(str(self.tree)) as repo:
            stages = _sources(repo) if only_sources else repo.index.stages
            return [
                os.path.relpath(out.fs_path, self.tree)
                for stage in stages
                for out in stage.outs
                if out.hash_info and (not out.exists or (only_sources and out.changed_checksum()))
            ]

    @cached_property
    def has_remote(self) -> bool:
        """Whether a DVC remote is set."""
        with Repo(str(self.tree)) as repo:
            return bool(repo.config["core"].get("remote"))

    def record(self, failed: str, keep: Keep, about: str) -> str | None:
        """Keep the worktree's files, dvc.lock and metrics among them, in git.

        Args:
            failed: why the run failed; empty where it didn't.
            keep: as what.
            about: one line that says what was run.

        Returns:
            The experiment's or the branch's name; None where it's all as it was before.
        """
        carry(self.tree, self.root)
        git(self.tree, "add", "--all", "--", ".")
        git(self.tree, "rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", ".topwork")
        files = git(self.tree, "write-tree")
        before = [(self.commit, "")]
        if earlier := self.earlier():
            before = [(earlier, self._why(earlier))]
        for commit, why in before:
            if git(self.root, "rev-parse", f"{commit}^{{tree}}") == files and why == failed:
                return None
        name = self._free_name(keep)
        verdict = f"failed: {failed}" if failed else "passed"
        message = f"{about}: {verdict}\n\n{KEY}: {self.key}\n{WHY}: {' '.join(failed.split())}\n"
        commit = git(
            self.tree, "commit-tree", files, "-p", self.commit, "-m", message, **self._author
        )
        git(self.root, "update-ref", self.ref(name, keep), commit, "0" * 40)
        self._keep_runs(name)
        if (self.tree / REPORT).is_file():
            reports = self.root / ".topwork" / "reports"
            reports.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.tree / REPORT, reports / f"{name.replace('/', '-')}.html")
        return name

    def _keep_runs(self, name: str) -> None:
        """Put the records of the stages that ran in the worktree into git."""
        listing = ""
        for path in sorted((self.tree / RUNS).glob("*.json")):
            blob = git(self.root, "hash-object", "-w", "--no-filters", str(path))
            listing += f"100644 blob {blob}\t{path.name}\n"
        if listing:
            tree = git(self.root, "mktree", given=listing)
            git(self.root, "update-ref", f"{RUN_REFS}/{name}", tree)

    def _why(self, commit: str) -> str:
        form = f"%(trailers:key={WHY},valueonly,separator=)"
        return git(self.root, "log", "-1", f"--format={form}", commit)

    def ref(self, name: str, keep: Keep) -> str:
        """The git reference of an experiment (DVC's own form) or a branch."""
        from dvc.repo.experiments.refs import ExpRefInfo

        return f"refs/heads/{name}" if keep == "branch" else str(ExpRefInfo(self.commit, name))

    def name_of(self, ref: str) -> str:
        """What a kept result is called."""
        return ref.removeprefix("refs/heads/").split(f"{self.commit[2:]}/")[-1]

    def _free_name(self, keep: Keep) -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        between = "/" if keep == "branch" else "-"
        what = re.sub(r"[^\w.=-]+", "", "-".join(f"{k}={v}" for k, v in self.params.items()))[:60]
        name = f"{self.label}{between}{stamp}-{self.commit[:7]}"
        return f"{name}-{what}".rstrip(".-") if what else name

    @cached_property
    def _author(self) -> dict[str, str]:
        try:
            git(self.root, "var", "GIT_COMMITTER_IDENT")
        except RunError:
            who = {"NAME": "topwork", "EMAIL": "topwork@localhost"}
            return {
                f"GIT_{role}_{key}": value
                for role in ("AUTHOR", "COMMITTER")
                for key, value in who.items()
            }
        return {}

    def close(self) -> None:
        """Remove the worktree."""
        close_worktree(self.root, self.worktree)


def close_worktree(root: Path, worktree: Path) -> None:
    """Remove a worktree, whatever state it is in."""
    with contextlib.suppress(RunError):
        git(root, "worktree", "remove", "--force", "--force", str(worktree))
    remove(worktree)
    git(root, "worktree", "prune")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Set values of a params.yaml by dotted keys; comments and the other keys stay.

    Raises:
        RunError: the file isn't there, or a key lies below something that isn't a section.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    try:
        document = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"params.yaml: no such file in this revision, so that {', '.join(changes)} can't be set"
        ) from error
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = document
        for section in sections:
            if not isinstance(place, dict) or section not in place:
                raise RunError(
                    f"params: {key} can't be set, since params.yaml has no section {section}"
                    f" there. It has: {', '.join(map(str, place))}."
                    if isinstance(place, dict)
                    else f"params: {key} can't be set, since what {section} lies in is a value."
                )
            place = place[section]
        if not isinstance(place, dict):
            raise RunError(f"params: {key} can't be set, since {'.'.join(sections)} is a value.")
        place[last] = value
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(document, stream)


def command_environment(root: Path, **more: str) -> dict[str, str]:
    """The environment of a run's commands on the project in `root`: its own code, and events on."""
    return environment_of(
        root,
        {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "TOPWORK_EVENTS": "1",
            "DVC_NO_ANALYTICS": "1",
            **more,
        },
    )


def dvc(folder: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """Run DVC; its output.

    Raises:
        RunError: it fails; the message is DVC's own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        shown = errors or done.stderr.strip().splitlines()[-1:]
        raise RunError(f"dvc {' '.join(arguments)}: {' '.join(shown)}")
    return done.stdout


@contextlib.contextmanager
def readable(root: Path) -> Iterator[None]:
    """DVC's own errors about dvc.yaml and its like as errors of the run, in one line."""
    try:
        yield
    except DvcException as error:
        raise RunError(f"{root}: {' '.join(str(error).split())}") from error
