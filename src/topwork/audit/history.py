"""`topwork audit list`: past experiments with their params and metrics: commits, DVC experiments,
and runs that failed.

Everything is read from git's objects and DVC's cache directly, each file once however many
revisions share it: DVC's own reader opens the project again for every revision.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from topwork.audit.repository import git, read_blobs
from topwork.audit.revision import parse_yaml
from topwork.errors import AuditError
from topwork.project.runs import runs

if TYPE_CHECKING:
    import pandas as pd

FACTS = ("rev", "name", "kind", "date", "subject", "differs")
"""Columns that are neither metric nor param."""
PARAMS = "params.yaml"
DEMO, DEMO_ROOT = "params.demo.", "data/demo"


@dataclass
class _Row:
    commit: str
    name: str
    kind: str
    date: str
    subject: str
    before: str | None = None
    """The commit that it is held against; None: the one before it in time."""
    values: dict[str, Any] = field(default_factory=dict)


def experiments(root: Path, limit: int | None = None) -> "pd.DataFrame":
    """Every commit that changed the record, every DVC experiment, and runs that failed, newest
    first.

    Returns:
        One row an experiment: rev, name, kind (`commit`, `experiment` or `failed`), date, subject,
        differs (the params that differ from the one before, of an experiment from its base; what
        stopped a failed run), then one column for each metric and param (`params.finetune.lr`),
        those that vary first; a value that a revision lacks is NA.

    Raises:
        AuditError: the folder isn't in a git repository, or a file of the history can't be read.
    """
    import pandas as pd

    # one more than is shown: what the last one differs in
    commits = _commits(root, limit if limit is None else limit + 1)
    surplus = {row.commit for row in commits[limit:]} if limit is not None else set()
    rows = [*commits, *_experiments(root)]
    _read_values(root, rows)
    rows += _failed(root)
    rows.sort(key=lambda row: datetime.fromisoformat(row.date), reverse=True)
    shown = [
        {
            "rev": row.commit[:10],
            "name": row.name,
            "kind": row.kind,
            "date": row.date,
            "subject": row.subject,
            "differs": differs,
            **row.values,
        }
        for row, differs in zip(rows, _differences(rows), strict=True)
        if row.kind != "commit" or row.commit not in surplus
    ]
    if not shown:
        return pd.DataFrame(columns=list(FACTS))
    own = {row.get("params.dataset.root", DEMO_ROOT) for row in shown} != {DEMO_ROOT}
    table = pd.DataFrame(shown)
    columns = [name for name in table.columns if not (own and name.startswith(DEMO))]
    varying = [
        name
        for name in columns
        if name.startswith("params.") and table[name].dropna().astype(str).nunique() > 1
    ]
    metrics = [name for name in columns if name not in FACTS and not name.startswith("params.")]
    others = [name for name in columns if name not in {*FACTS, *varying, *metrics}]
    return table[[*FACTS, *metrics, *varying, *others]].drop_duplicates(
        ["rev", "name", "kind", "date"], ignore_index=True
    )


def chosen_columns(columns: Sequence[str], words: Sequence[str]) -> list[str]:
    """Metrics and params whose name holds one of the words, in the order of the words.

    Raises:
        AuditError: a word is in none.
    """
    import difflib

    known = [name for name in columns if name not in FACTS]
    found: list[str] = []
    for word in words:
        named = [name for name in known if word in name]
        if not named:
            short = [name.removeprefix("params.") for name in known]
            near = difflib.get_close_matches(word, short, n=3, cutoff=0.0)
            raise AuditError(
                f"--columns {word}: no metric or param has that in its name; near:"
                f" {', '.join(near)}."
            )
        found += [name for name in named if name not in found]
    return found


def _commits(root: Path, limit: int | None) -> list[_Row]:
    listing = git(
        root,
        "log",
        "HEAD",
        "--branches",
        "--tags",
        "--remotes",
        "--no-show-signature",
        "--format=%H%x00%cI%x00%s",
        *([f"--max-count={limit}"] if limit is not None else []),
        "--",
        "dvc.lock",
        ":(glob)**/dvc.lock",
    ).decode(errors="replace")
    rows = [line.split("\0", 2) for line in listing.splitlines()]
    return [_Row(commit, "", "commit", date, subject) for commit, date, subject in rows]


def _experiments(root: Path) -> list[_Row]:
    listing = git(
        root, "for-each-ref", "--format=%(objectname)%00%(committerdate:iso-strict)%00%(refname)",
        "refs/exps",
    ).decode()  # fmt: skip
    rows = []
    for line in listing.splitlines():
        commit, date, ref = line.split("\0")
        parts = ref.split("/")
        if len(parts) == 5:  # refs/exps/AB/CDEF.../NAME; others are DVC's own
            base = parts[2] + parts[3]
            rows.append(_Row(commit, parts[4], "experiment", date, f"from {base[:10]}", base))
    return rows


def _failed(root: Path) -> list[_Row]:
    """Runs that didn't end well, of the records in .topwork/runs."""
    return [
        _Row(
            commit=run.code.commit or "",
            name=f"{run.stage} {run.state}",
            kind="failed",
            date=run.started,
            subject=" ".join((run.error or "no word of why").split()),
        )
        for run in runs(root)
        if run.state in ("failed", "killed")
    ]


def _read_values(root: Path, rows: list[_Row]) -> None:
    """Put metrics and params into the rows."""
    blobs = _Blobs(root)
    named = blobs.find([(row.commit, name) for row in rows for name in ("dvc.yaml", PARAMS)])
    blobs.read(blob for blob in named.values() if blob)
    metric_files: dict[str, list[str]] = {}
    for row in rows:
        definition = named[row.commit, "dvc.yaml"]
        if definition is not None and definition not in metric_files:
            metric_files[definition] = _metric_files(blobs.yaml(definition))
    of = {row.commit: metric_files.get(named[row.commit, "dvc.yaml"] or "", []) for row in rows}
    wanted = [(row.commit, name) for row in rows for name in (*of[row.commit], "dvc.lock")]
    files = blobs.find(wanted)
    blobs.read(blob for blob in files.values() if blob)
    for row in rows:
        lock = files[row.commit, "dvc.lock"]
        for name in of[row.commit]:
            content = blobs.cached(files[row.commit, name], lock, name)
            row.values |= _flat(content)
        params = named[row.commit, PARAMS]
        if params is not None:
            row.values |= _flat(blobs.yaml(params), "params.")


class _Blobs:
    """Files of many revisions, each content read and parsed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[str, bytes] = {}
        self._parsed: dict[str, Any] = {}
        self._cache: Any = None

    def find(self, places: list[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
        """(commit, path) -> the blob's id, None where the revision lacks it."""
        import subprocess

        names = "".join(f"{commit}:./{path}\n" for commit, path in places)
        done = subprocess.run(
            ["git", "cat-file", "--batch-check"],
            cwd=self.root,
            input=names.encode(),
            capture_output=True,
            check=True,
        )
        lines = done.stdout.decode().splitlines()
        return {
            place: line.split()[0] if line.split()[1:2] == ["blob"] else None
            for place, line in zip(places, lines, strict=True)
        }

    def read(self, blobs: Iterator[str]) -> None:
        wanted = set(blobs) - set(self._contents)
        for name, blob in read_blobs(self.root, sorted(wanted), keep=True):
            assert blob.content is not None
            self._contents[name] = blob.content

    def yaml(self, blob: str) -> dict[str, Any]:
        """A YAML file; empty where it can't be read: the list shows what it can."""
        from ruamel.yaml.error import YAMLError

        if blob not in self._parsed:
            try:
                document = parse_yaml(self._contents[blob].decode())
            except (YAMLError, ValueError, RecursionError, OverflowError):
                document = None
            self._parsed[blob] = document if isinstance(document, dict) else {}
        found: dict[str, Any] = self._parsed[blob]
        return found

    def cached(self, blob: str | None, lock: str | None, path: str) -> Any:
        """A metrics file, from git or from the DVC cache."""
        if blob is not None:
            return _json(self._contents[blob])
        if lock is None:
            return {}
        content = self._object(self._contents[lock].decode(errors="replace"), path)
        return {} if content is None else _json(content)

    def _object(self, lock: str, path: str) -> bytes | None:
        for out in (path, *(str(parent) for parent in PurePosixPath(path).parents)):
            found = re.search(
                rf"- path: {re.escape(out)}\n(?: +\w+: .*\n)*? +md5: (\w+(?:\.dir)?)\n", lock
            )
            if found is None:
                continue
            try:
                content = self._place(found.group(1)).read_bytes()
                if out == path:
                    return content
                member = path.removeprefix(f"{out}/")
                md5s = {item["relpath"]: item["md5"] for item in json.loads(content)}
                return self._place(md5s[member]).read_bytes()
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return None

    def _place(self, md5: str) -> Path:
        if self._cache is None:
            from dvc.repo import Repo

            with Repo(str(self.root)) as repo:
                self._cache = repo.cache.local.oid_to_path
        return Path(self._cache(md5))


def _metric_files(definition: dict[str, Any]) -> list[str]:
    """Paths of metrics in a dvc.yaml, those of its stages first."""
    found: list[str] = []
    stages = definition.get("stages")
    sources = [*(stages.values() if isinstance(stages, dict) else ()), definition]
    for source in sources:
        items = (source.get("metrics") or ()) if isinstance(source, dict) else ()
        found += [item if isinstance(item, str) else str(next(iter(item))) for item in items]
    return list(dict.fromkeys(found))


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return {}


def _differences(rows: list[_Row]) -> list[str]:
    """Row by row, newest first: params that differ from the experiment's base, or from the commit
    before; what stopped a failed run.
    """
    commits = {row.commit: row for row in rows if row.kind == "commit"}
    found = []
    older: _Row | None = None
    for row in reversed(rows):
        before = commits.get(row.before) if row.before else older
        found.append(row.subject[:100] if row.kind == "failed" else _differing(row, before))
        older = row if row.kind == "commit" else older
    return found[::-1]


def _differing(row: _Row, before: _Row | None) -> str:
    if before is None:
        return ""
    names = [name for name in {**row.values, **before.values} if name.startswith("params.")]
    return ", ".join(
        f"{name.removeprefix('params.')}={_word(row.values.get(name))}"
        for name in names
        if row.values.get(name) != before.values.get(name)
    )


def _word(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(values: Any, start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            flat |= _flat(value, f"{start}{key}.")
        else:
            flat[f"{start}{key}"] = value
    return flat
