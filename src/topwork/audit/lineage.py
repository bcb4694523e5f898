"""`topwork audit show`: what a run was made of, from data and weights to metrics, as text and as a
page with a drawn graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from topwork.audit.check import Check
from topwork.audit.definition import Definition, definitions
from topwork.audit.repository import git
from topwork.audit.revision import Entry, Revision
from topwork.audit.verification import touches
from topwork.errors import AuditError, TopworkError
from topwork.project.evaluate import METRICS, VERDICT, VerdictRecord
from topwork.project.fetch import PROVENANCE, ProvenanceRecord
from topwork.project.finetune import RECORD, RunRecord
from topwork.project.runs import StageRun, runs
from topwork.report.lineage import flatten
from topwork.report.page import render
from topwork.report.sections import Table
from topwork.report.svg import number, svg

CODE = ("src/", "requirements.txt", "flows/")
BOX, GAP = (100, 36), (24, 18)
"""Width and height of a box of the graph, and of the room between two."""
LONGEST = 13
"""Letters of a name that fit a box."""


@dataclass(frozen=True)
class Node:
    """A source of data or weights, or a stage.

    Attributes:
        name: as dvc.yaml has it; of a source its path.
        stage: whether it is a stage.
        outs: what it hands on.
        status: the worst of its statements (`holds`, `stale`, `unchecked`, `broken`).
        upstream: names of the nodes that it reads.
        run: the record of the run that wrote these outs, where there is one.
    """

    name: str
    stage: bool
    outs: tuple[Entry, ...]
    status: str
    upstream: tuple[str, ...]
    run: StageRun | None


@dataclass(frozen=True)
class Lineage:
    """All of a run.

    Attributes:
        revision: which.
        date, subject: of the commit.
        nodes: sources first, then stages, upstream ones first.
        metrics: dotted name -> figure.
        verdict: a line a contract.
        facts: what else a reader asks for: name -> words.
        checks: statements of the record.
    """

    revision: Revision
    date: str
    subject: str
    nodes: tuple[Node, ...]
    metrics: dict[str, Any]
    verdict: tuple[str, ...]
    facts: dict[str, str]
    checks: tuple[Check, ...]


def lineage_of(revision: Revision, checks: list[Check]) -> Lineage:
    """Put a run's lineage together from its record and what is known of it (`verify`).

    Raises:
        AuditError: the revision's record can't be read.
    """
    shown = git(revision.root, "show", "--no-patch", "--format=%cI%n%s", revision.commit).decode()
    date, _, subject = shown.strip().partition("\n")
    return Lineage(
        revision,
        date,
        subject,
        tuple(_nodes(revision, checks)),
        _metrics(revision),
        tuple(_verdict(revision)),
        dict(_facts(revision)),
        tuple(checks),
    )


def _nodes(revision: Revision, checks: list[Check]) -> Iterator[Node]:
    defined = {
        name: definition
        for name, definition in definitions(revision).items()
        if name in revision.stages
    }
    worst = _worst(checks)
    written = runs(revision.root)
    order = _order(defined)
    outs = {name: revision.stages[name].outs for name in order}
    sources = _sources(revision, defined)
    for path in sources:
        entry = revision.outs.get(path, Entry(path, None))
        yield Node(path, False, (entry,), worst.get(f"{path}.dvc", "holds"), (), None)
    for name in order:
        upstream = [
            other
            for other in [*sources, *order]
            if other != name and any(touches(dep, path) for dep in defined[name].deps
                                     for path in _paths(other, defined))
        ]  # fmt: skip
        hashes = {out.path: out.md5 for out in outs[name]}
        ran = [run for run in written if run.outs and run.outs.items() <= hashes.items()]
        same = [run for run in ran if run.stage == name.rpartition(":")[2]]
        last = same[-1] if same else None
        yield Node(name, True, outs[name], worst.get(name, "holds"), tuple(upstream), last)


def _paths(name: str, defined: Mapping[str, Definition]) -> frozenset[str]:
    return defined[name].outs if name in defined else frozenset({name})


def _sources(revision: Revision, defined: Mapping[str, Definition]) -> list[str]:
    """Deps that no stage makes and that aren't code: data and weights."""
    made = {out for definition in defined.values() for out in definition.outs}
    found = {
        dep
        for definition in defined.values()
        for dep in definition.deps
        if not dep.startswith(CODE) and not any(touches(dep, out) for out in made)
    }
    return sorted(found)


def _order(defined: Mapping[str, Definition]) -> list[str]:
    from graphlib import TopologicalSorter

    graph = {
        name: sorted(
            other
            for other in defined
            if other != name
            and any(touches(dep, out) for dep in defined[name].deps for out in defined[other].outs)
        )
        for name in sorted(defined)
    }
    return list(TopologicalSorter(graph).static_order())


def _worst(checks: list[Check]) -> dict[str, str]:
    order = ("holds", "unchecked", "stale", "broken")
    worst: dict[str, str] = {}
    for check in checks:
        before = worst.get(check.stage, "holds")
        worst[check.stage] = max(before, check.status, key=order.index)
    return worst


def _metrics(revision: Revision) -> dict[str, Any]:
    import json

    try:
        document = json.loads(revision.read_bytes(METRICS.as_posix()))
    except (AuditError, ValueError):
        return {}
    return dict(flatten(document)) if isinstance(document, dict) else {}


def _verdict(revision: Revision) -> Iterator[str]:
    try:
        record = VerdictRecord.parse(revision.read_bytes(VERDICT.as_posix()), VERDICT)
    except TopworkError:
        return
    yield from record.lines()


def _facts(revision: Revision) -> Iterator[tuple[str, str]]:
    """Weights and how exactly the training repeats itself, where the revision says so."""
    try:
        provenance = ProvenanceRecord.parse(revision.read_bytes(PROVENANCE.as_posix()), PROVENANCE)
        extra = provenance.model_extra or {}
        sha256 = str(extra.get("sha256", ""))[:12]
        columns = len(provenance.columns)
        yield (
            "weights",
            f"{extra.get('source')} ({sha256}), {provenance.builder}, {columns} columns",
        )
        record = RunRecord.parse(revision.read_bytes(RECORD.as_posix()), RECORD)
        seed = f", seed {record.seed}" if record.seed is not None else ""
        trained = f"{record.epochs} epochs, {record.steps} steps{seed}"
        yield "training", f"{trained}; {record.determinism.level}"
        machine = ", ".join(f"{key} {value}" for key, value in sorted(record.machine.items()))
        yield "machine", machine
    except TopworkError:
        return


def lineage_text(lineage: Lineage) -> str:
    """The lineage for a terminal."""
    revision = lineage.revision
    lines = [f"{revision.commit[:10]}  {lineage.date[:10]}  {lineage.subject}", ""]
    lines += lineage.verdict
    lines += [f"{name:<24}{_rounded(value)}" for name, value in lineage.metrics.items()]
    lines += ["", f"record: {_summary(lineage)}", ""]
    lines += [f"{name}: {words}" for name, words in lineage.facts.items()]
    lines += ["", "lineage, upstream first:"]
    for node in lineage.nodes:
        reads = f" <- {', '.join(node.upstream)}" if node.upstream else ""
        took = f" ({node.run.seconds:.1f} s)" if node.run and node.run.seconds else ""
        mark = "" if node.status == "holds" else f" [{node.status}]"
        lines.append(f"  {node.name}{took}{mark}{reads}")
        lines += [f"      {out.path}  {_fact(out)}" for out in node.outs if out.md5]
    return "\n".join(lines)


def lineage_page(lineage: Lineage) -> str:
    """The lineage as one self-contained page."""
    revision = lineage.revision
    breached = any(line.startswith("contract BREACHED") for line in lineage.verdict)
    return render(
        "lineage.html.j2",
        "topwork.audit",
        title=f"{lineage.subject} ({revision.commit[:10]}, {lineage.date[:10]})",
        verdict=lineage.verdict,
        breached=breached,
        record=_summary(lineage),
        whole=all(check.status == "holds" for check in lineage.checks),
        metrics=_metric_table(lineage),
        graph=draw_graph(lineage.nodes),
        facts=lineage.facts,
        faults=[check for check in lineage.checks if check.status != "holds"],
        files=_file_table(lineage),
        runs=_run_table(lineage),
        params=Table(
            label="params",
            caption="params.yaml at this revision",
            heads=("key", "value"),
            rows=[[key, value] for key, value in flatten(revision.params_document())],
        ),
    )


def _summary(lineage: Lineage) -> str:
    counts = {
        status: sum(check.status == status for check in lineage.checks)
        for status in ("holds", "broken", "stale", "unchecked")
    }
    if not any(counts[status] for status in ("broken", "stale", "unchecked")):
        return f"all {counts['holds']} statements hold"
    words = {"holds": "hold", "broken": "are broken", "stale": "are stale"}
    return ", ".join(
        f"{count} {words.get(status, 'unchecked')}" for status, count in counts.items() if count
    )


def _metric_table(lineage: Lineage) -> Table:
    rows = [[name, _rounded(value)] for name, value in lineage.metrics.items()]
    return Table(
        label="metrics", caption="Metrics", heads=("metric", "figure"), rows=rows, numeric=(1,)
    )


def _file_table(lineage: Lineage) -> Table:
    rows = [
        [node.name, out.path, out.md5 or "", f"{out.size:,}" if out.size is not None else ""]
        for node in lineage.nodes
        for out in node.outs
    ]
    heads = ("from", "file", "MD5", "bytes")
    return Table(label="files", caption="Files that it left", heads=heads, rows=rows, numeric=(3,))


def _run_table(lineage: Lineage) -> Table | None:
    rows = [
        [
            run.stage,
            run.started[:19].replace("T", " "),
            f"{run.seconds:.1f}" if run.seconds is not None else "",
            f"{(run.code.commit or 'no commit')[:10]}{' and changes' if run.code.patch else ''}",
            run.environment.processor,
        ]
        for node in lineage.nodes
        if (run := node.run) is not None
    ]
    if not rows:
        return None
    heads = ("stage", "began (UTC)", "seconds", "code", "processor")
    return Table(label="runs", caption="Runs that wrote them", heads=heads, rows=rows, numeric=(2,))


def _fact(out: Entry) -> str:
    files = f", {out.files} files" if out.files is not None else ""
    size = f", {out.size:,} bytes" if out.size is not None else ""
    return f"{(out.md5 or '')[:12]}{files}{size}"


def _rounded(value: Any) -> str:
    try:
        return f"{float(value):.4f}"
    except ValueError:
        return str(value)


def draw_graph(nodes: tuple[Node, ...]) -> Markup:
    """Boxes and arrows, left to right; an arrow is left out where a longer way says the same."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.name] = 1 + max((depth[name] for name in node.upstream), default=-1)
    direct = {node.name: _direct(node, {n.name: n for n in nodes}) for node in nodes}
    columns = [[n for n in nodes if depth[n.name] == d] for d in range(max(depth.values()) + 1)]
    tallest = max(map(len, columns))
    place: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(columns):
        heights = {n.name: [place[up][1] for up in n.upstream] for n in column}
        column.sort(key=lambda n: sum(heights[n.name]) / max(1, len(heights[n.name])))
        for y, node in enumerate(column):
            top = (tallest - len(column)) * (BOX[1] + GAP[1]) / 2 + y * (BOX[1] + GAP[1])
            place[node.name] = (x * (BOX[0] + GAP[0]) + 2, top + 2)
    parts = [_arrow(place[name], place[node.name]) for node in nodes for name in direct[node.name]]
    parts += [_box(node, place[node.name]) for node in nodes]
    size = (len(columns) * (BOX[0] + GAP[0]) - GAP[0] + 4, tallest * (BOX[1] + GAP[1]) - GAP[1] + 4)
    words = "; ".join(f"{n.name} reads {', '.join(n.upstream)}" for n in nodes if n.upstream)
    return svg(
        "lineage", "From data and weights to metrics", words, "".join(parts), size, "lineage"
    )


def _direct(node: Node, nodes: Mapping[str, Node]) -> list[str]:
    def above(name: str) -> set[str]:
        found: set[str] = set()
        for upstream in nodes[name].upstream:
            found |= {upstream, *above(upstream)}
        return found

    further = {far for name in node.upstream for far in above(name)}
    return [name for name in node.upstream if name not in further]


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    points = [
        (start[0] + BOX[0], start[1] + BOX[1] / 2),
        (end[0] - GAP[0] / 2 - 4, start[1] + BOX[1] / 2),
        (end[0] - GAP[0] / 2 + 4, end[1] + BOX[1] / 2),
        (end[0] - 5, end[1] + BOX[1] / 2),
    ]
    line = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    (tip_x, tip_y) = points[-1]
    tip = f"M{number(tip_x)} {number(tip_y - 4)}l6 4l-6 4z"
    return f'<polyline class="way" points="{line}"/><path class="tip" d="{tip}"/>'


def _box(node: Node, place: tuple[float, float]) -> str:
    x, y = place
    name = node.name.rpartition(":")[2]
    name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    css = f"{'stage' if node.stage else 'source'} {node.status}"
    return (
        f'<g class="{css}"><rect x="{number(x)}" y="{number(y)}" width="{BOX[0]}"'
        f' height="{BOX[1]}" rx="6"/><text x="{number(x + BOX[0] / 2)}"'
        f' y="{number(y + BOX[1] / 2 + 4)}" text-anchor="middle">{escape(name)}</text></g>'
    )
