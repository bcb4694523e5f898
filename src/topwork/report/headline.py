"""The verdict in one sentence, and the three numbers that matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from topwork.report.figures import (
    ClassFigures,
    Clause,
    Estimate,
    average_precision,
    exact_percent,
    mean_ap,
    percent,
    words,
)

State = Literal["holds", "breached", "open"]
LEARNED_FROM = 0.1
"""AP below which the page doesn't call a class learned, whatever was asked: one that is found now
and then, badly placed.
"""
MOST_NAMED = 4
"""Classes that a sentence names one by one."""


@dataclass(frozen=True)
class Number:
    """One of the three numbers: what it is, the figure, and a line of context."""

    label: str
    value: str
    context: str


@dataclass(frozen=True)
class Headline:
    """The top of the page."""

    state: State
    tag: str
    sentence: str
    numbers: tuple[Number, ...]


def headline(
    figures: Sequence[ClassFigures], contract: Sequence[Clause], mean: float | None
) -> Headline:
    """Say what became of the kept classes and of the learned ones.

    Args:
        figures: the class table.
        contract: the contracts' verdict.
        mean: mAP of the fine-tuned detector on the test set; None where undefined.
    """
    state = _state(contract)
    tag = {
        "holds": "Contract held",
        "breached": "Contract breached",
        "open": "No contract set" if not contract else "Contract open",
    }[state]
    retention = [clause for clause in contract if clause.kind == "retention"]
    learning = [clause for clause in contract if clause.kind == "learned"]
    sentence = (
        f"{_kept_sentence(figures, retention)}{', and' if state == 'holds' else ';'}"
        f" {_learned_sentence(figures, learning)}."
    )
    return Headline(
        state,
        tag,
        sentence[0].upper() + sentence[1:],
        (_kept(figures, retention), _learned(figures, learning), _whole(figures, mean)),
    )


def _state(contract: Sequence[Clause]) -> State:
    if any(clause.holds is False for clause in contract):
        return "breached"
    return "holds" if contract and all(clause.holds for clause in contract) else "open"


def _worst(
    figures: Sequence[ClassFigures], contract: Sequence[Clause]
) -> tuple[str, str, Estimate, float | None] | None:
    """The kept class with the worst retention: (name, set, retention, least asked)."""
    measured = [(clause, clause.found, clause.measured) for clause in contract]
    asked = [
        (clause, found, -1.0 if value is None else value / clause.least)
        for clause, found, value in measured
        if found is not None
    ]
    if asked:
        clause, found, _ = min(asked, key=lambda item: item[2])
        return clause.name, clause.on, found, clause.least
    kept = [figure for figure in figures if figure.kept and figure.retention is not None]
    preferred = [figure for figure in kept if figure.on == "source"] or kept
    if not preferred:
        return None
    worst = min(preferred, key=lambda figure: figure.retention.value if figure.retention else 0.0)
    assert worst.retention is not None
    return worst.name, worst.on, worst.retention, None


def _kept_sentence(figures: Sequence[ClassFigures], contract: Sequence[Clause]) -> str:
    breached = [clause for clause in contract if clause.holds is False]
    if breached:
        return words([_breach(clause) for clause in breached])
    exact = [clause.name for clause in contract if clause.by == "exact"]
    held = [clause for clause in contract if clause.found is not None and clause.by != "exact"]
    proved = f"{words(exact)} {'is' if len(exact) == 1 else 'are'} kept exactly, which is proved"
    if held:
        parts = [
            f"{clause.name} kept {percent(clause.found.value, clause.least)} of its pretrained AP"
            for clause in held
            if clause.found
        ]
        asked = [exact_percent(least) for least in sorted({clause.least for clause in held})]
        measured = f"{words(parts)} (at least {' or '.join(asked)} was asked){_loss(figures, held)}"
        return f"{proved}; {measured}" if exact else measured
    if exact:
        return proved
    worst = _worst(figures, contract)
    if worst is None:
        return "nothing is known of kept classes: none was kept, or their AP is undefined"
    return (
        f"{worst[0]} kept {percent(worst[2].value)} of its pretrained AP on the"
        f" {_set_name(worst[1])}"
    )


def _loss(figures: Sequence[ClassFigures], held: Sequence[Clause]) -> str:
    """What a class whose contract holds on the source set lost on the test set."""
    least = {clause.name: clause.least for clause in held if clause.on == "source"}
    lost = [
        f"{figure.name} only {percent(figure.retention.value, least[figure.name])}"
        for figure in figures
        if figure.on == "test"
        and figure.name in least
        and figure.retention is not None
        and figure.retention.value < least[figure.name]
    ]
    return f", but on the test set {words(lost)}" if lost else ""


def _breach(clause: Clause) -> str:
    if clause.by == "exact":
        return f"{clause.name} isn't kept exactly ({clause.sentence})"
    asked = f"where at least {exact_percent(clause.least)} was asked"
    if clause.found is None:
        return f"{clause.name}'s retention is undefined {asked}"
    kept = f"{clause.name} kept {percent(clause.found.value, clause.least)} of its pretrained AP"
    if clause.by == "estimate":
        return f"{kept} {asked}"
    end = (
        "has no interval"
        if clause.found.low is None
        else f"may be as low as {percent(clause.found.low, clause.least)}"
    )
    return f"{kept}, but that {end} {asked}"


def _learned_sentence(figures: Sequence[ClassFigures], contract: Sequence[Clause]) -> str:
    added = [figure for figure in figures if figure.on == "test" and not figure.kept]
    if not added:
        return "no class was added"
    asked = {clause.name: clause for clause in contract}
    parts = [_short(clause) for clause in contract if clause.holds is False]
    rest = {
        figure.name: found.value
        for figure in added
        if (found := figure.ap["finetuned"]) is not None
        and (figure.name not in asked or asked[figure.name].holds)
    }
    learned = {name: value for name, value in rest.items() if value >= LEARNED_FROM}
    weak = {name: value for name, value in rest.items() if name not in learned}
    if learned:
        least = sorted({asked[name].least for name in learned if name in asked})
        wanted = f" (at least {' or '.join(f'{value:g}' for value in least)} was asked)"
        parts.insert(0, f"{_reached(learned, asked)}{wanted if least else ''}")
    if weak:
        names = words(list(weak)) if len(weak) <= MOST_NAMED else f"{len(weak)} classes"
        values = f"AP {words([average_precision(value) for value in weak.values()])}"
        one = len(weak) == 1
        parts.append(
            f"{names} {'was' if one else 'were'} not learned"
            f" ({values if len(weak) <= MOST_NAMED else f'AP below {LEARNED_FROM:g}'})"
        )
    unknown = [
        figure.name
        for figure in added
        if figure.ap["finetuned"] is None and figure.name not in asked
    ]
    if unknown:
        parts.append(f"the AP of {words(unknown)} is undefined: the test set holds none")
    return "; ".join(parts)


def _reached(learned: Mapping[str, float], asked: Mapping[str, Clause]) -> str:
    names = list(learned)
    if len(names) > MOST_NAMED:
        mean = sum(learned.values()) / len(learned)
        return f"{len(names)} classes were learned, to a mean AP of {mean:.2f}"
    values = [
        average_precision(value, asked[name].least if name in asked else None)
        for name, value in learned.items()
    ]
    return f"{words(names)} {'was' if len(names) == 1 else 'were'} learned to AP {words(values)}"


def _short(clause: Clause) -> str:
    """A breach of the learning contract."""
    wanted = f"where at least {clause.asked} was asked"
    if clause.found is None:
        return f"the AP of {clause.name} is undefined {wanted}"
    reached = f"{clause.name} reached AP {average_precision(clause.found.value, clause.least)}"
    if clause.by == "estimate":
        return f"{reached} {wanted}"
    end = (
        "has no interval"
        if clause.found.low is None
        else f"may be as low as {average_precision(clause.found.low, clause.least)}"
    )
    return f"{reached}, but that {end} {wanted}"


def _kept(figures: Sequence[ClassFigures], contract: Sequence[Clause]) -> Number:
    worst = _worst(figures, contract)
    if worst is None:
        return Number("Retention", "undefined", "no kept class with a pretrained AP")
    name, on, found, least = worst
    context = f"{name}, {_set_name(on)}"
    if found.low is not None and found.high is not None:
        context += f"; interval {percent(found.low)} to {percent(found.high)}"
    if any(clause.name == name and clause.on == on and clause.by == "exact" for clause in contract):
        context += "; exact, proved" if _state(contract) == "holds" else "; asked: exact"
    elif least is not None:
        context += f"; asked ≥ {exact_percent(least)}"
    return Number("Kept: retention", percent(found.value, least), context)


def _learned(figures: Sequence[ClassFigures], contract: Sequence[Clause]) -> Number:
    added = [figure for figure in figures if figure.on == "test" and not figure.kept]
    after, before = mean_ap(added, "finetuned"), mean_ap(added, "grafted")
    if after is None:
        return Number(
            "New classes: AP", "undefined", "no added class with an object in the test set"
        )
    context = (
        f"mean of {words([figure.name for figure in added])}"
        if len(added) <= MOST_NAMED
        else f"mean of {len(added)} added classes"
    )
    if before is not None:
        context += f"; {before:.2f} before training"
    if contract:
        least = sorted({clause.least for clause in contract})
        context += f"; asked ≥ {' or '.join(f'{value:g}' for value in least)}"
    return Number("New classes: AP", f"{after:.2f}", context)


def _whole(figures: Sequence[ClassFigures], mean: float | None) -> Number:
    if mean is None:
        return Number("All classes: mAP", "undefined", "no ground truth in the test set")
    here = [figure for figure in figures if figure.on == "test"]
    defined = sum(figure.ap["finetuned"] is not None for figure in here)
    before = [
        figure.ap["pretrained"].value for figure in here if figure.ap["pretrained"] is not None
    ]
    context = f"mean over {defined} classes, test set"
    context += f"; pretrained {sum(before) / defined:.2f}" if before else "; pretrained 0"
    return Number("All classes: mAP", f"{mean:.2f}", context)


def _set_name(on: str) -> str:
    return f"{on} set"
