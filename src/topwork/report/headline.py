"""The verdict in one sentence, and the three numbers that matter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from topwork.report.figures import (
    ClassFigures,
    Clause,
    Estimate,
    exact_percent,
    mean_ap,
    percent,
    words,
)

State = Literal["holds", "breached", "open"]


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
        contract: the contract's verdict.
        mean: mAP of the fine-tuned detector on the test set; None where undefined.
    """
    state = _state(contract)
    tag = {
        "holds": "Contract held",
        "breached": "Contract breached",
        "open": "No contract set" if not contract else "Contract open",
    }[state]
    sentence = (
        f"{_kept_sentence(figures, contract)}{', and' if state == 'holds' else ';'}"
        f" {_learned_sentence(figures)}."
    )
    return Headline(
        state,
        tag,
        sentence[0].upper() + sentence[1:],
        (_kept(figures, contract), _learned(figures), _whole(figures, mean)),
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
        measured = f"{words(parts)} (at least {' or '.join(asked)} was asked)"
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


def _learned_sentence(figures: Sequence[ClassFigures]) -> str:
    learned = [figure for figure in figures if figure.on == "test" and not figure.kept]
    defined = [figure for figure in learned if figure.ap["finetuned"] is not None]
    if not learned:
        return "no class was added"
    if not defined:
        return (
            f"the AP of {words([figure.name for figure in learned])} is undefined: the test set"
            " holds none"
        )
    if len(defined) > 4:
        return (
            f"{len(defined)} classes were learned, to a mean AP of"
            f" {mean_ap(defined, 'finetuned'):.2f}"
        )
    values = [f"{figure.ap['finetuned'].value:.2f}" for figure in defined if figure.ap["finetuned"]]
    return (
        f"{words([figure.name for figure in defined])} {'was' if len(defined) == 1 else 'were'}"
        f" learned to AP {words(values)}"
    )


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


def _learned(figures: Sequence[ClassFigures]) -> Number:
    learned = [figure for figure in figures if figure.on == "test" and not figure.kept]
    after, before = mean_ap(learned, "finetuned"), mean_ap(learned, "grafted")
    if after is None:
        return Number(
            "Learned: AP", "undefined", "no added class with ground truth in the test set"
        )
    context = (
        f"mean of {words([figure.name for figure in learned])}"
        if len(learned) <= 4
        else f"mean of {len(learned)} added classes"
    )
    if before is not None:
        context += f"; {before:.2f} before training"
    return Number("Learned: AP", f"{after:.2f}", context)


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
