"""The verdict sentence and the three numbers, from figures given by hand."""

import pytest

from topwork.report.figures import ClassFigures, Clause, Estimate, percent, words
from topwork.report.headline import headline
from topwork.report.sections import contract_cell


def figures(
    name: str,
    origin: str,
    on: str,
    before: float | None,
    grafted: float | None,
    after: float | None,
) -> ClassFigures:
    ap = {
        key: None if value is None else Estimate(value)
        for key, value in (("pretrained", before), ("grafted", grafted), ("finetuned", after))
    }
    retention = (
        Estimate(after / before, 0.9, 1.05)
        if before and after is not None and origin == "keep"
        else None
    )
    return ClassFigures(name, origin, on, ap, retention, 10, 5)


YARD = [
    figures("person", "keep", "test", 0.3, 0.3, 0.6),
    figures("helmet", "new", "test", None, 0.0, 0.5),
    figures("forklift", "like", "test", None, 0.1, 0.7),
    figures("person", "keep", "source", 0.8, 0.8, 0.776),
]


def test_contract_held() -> None:
    top = headline(YARD, [Clause("person", "source", 0.95, Estimate(0.97, 0.93, 1.0), True)], 0.6)
    assert top.state == "holds"
    assert (
        top.sentence
        == "Person kept 97% of its pretrained AP (at least 95% was asked), and helmet and forklift"
        " were learned to AP 0.50 and 0.70."
    )
    # worst retention; (0.5 + 0.7) / 2; the mAP given
    assert [number.value for number in top.numbers] == [
        "97%",
        "0.60",
        "0.60",
    ]
    assert top.numbers[0].context == "person, source set; interval 93% to 100%; asked ≥ 95%"
    assert top.numbers[1].context == "mean of helmet and forklift; 0.05 before training"
    # 0.3 / 3: it knows one of the three
    assert top.numbers[2].context == "mean over 3 classes, test set; pretrained 0.10"


def test_a_class_that_is_kept_exactly_is_called_proved() -> None:
    exact = Clause("person", "source", 1.0, Estimate(1.0), True, "person: exact", by="exact")
    top = headline(YARD, [exact], 0.6)
    assert top.sentence.startswith("Person is kept exactly, which is proved, and helmet and")
    assert top.numbers[0].context == "person, source set; exact, proved"
    assert "holds: exact, proved" in contract_cell(exact)
    also = Clause("dog", "source", 0.9, Estimate(0.95), True)
    both = headline(YARD, [exact, also], 0.6).sentence
    assert both.startswith("Person is kept exactly, which is proved; dog kept 95% of its")
    breach = Clause("person", "source", 1.0, Estimate(0.9), False, "no proof", by="exact")
    top = headline(YARD, [breach], 0.6)
    assert top.sentence.startswith("Person isn't kept exactly (no proof); helmet")
    assert "breached: exact<" in contract_cell(breach)


def test_contract_breached_names_class_and_figures() -> None:
    top = headline(YARD, [Clause("person", "source", 0.95, Estimate(0.81), False)], 0.6)
    assert (top.state, top.tag) == ("breached", "Contract breached")
    assert top.sentence.startswith(
        "Person kept 81% of its pretrained AP where at least 95% was asked;"
    )


@pytest.mark.parametrize(
    ("clause", "sentence"),
    [
        (
            Clause("person", "source", 0.95, Estimate(0.9496), False),
            "Person kept 94.96% of its pretrained AP where at least 95% was asked;",
        ),
        (
            Clause("person", "source", 0.975, Estimate(0.972), False),
            "Person kept 97% of its pretrained AP where at least 97.5% was asked;",
        ),
        (
            Clause("person", "source", 0.95, Estimate(0.967, 0.936, 0.994), False, by="interval"),
            (
                "Person kept 97% of its pretrained AP, but that may be as low as 94% where at least"
                " 95% was asked;"
            ),
        ),
        (
            Clause("person", "source", 0.95, Estimate(0.967), False, by="interval"),
            (
                "Person kept 97% of its pretrained AP, but that has no interval where at least 95%"
                " was asked;"
            ),
        ),
    ],
    ids=["by a hair", "tenths asked", "by the interval", "no interval"],
)
def test_a_breach_never_sounds_like_success(clause: Clause, sentence: str) -> None:
    assert headline(YARD, [clause], 0.6).sentence.startswith(sentence)


def test_undefined_retention_is_named() -> None:
    top = headline(YARD[1:3], [Clause("person", "source", 0.95, None, False)], 0.6)
    assert "person's retention is undefined" in top.sentence.lower()
    assert top.numbers[0].value == "undefined"


def test_no_contract_no_kept_class_no_added_class() -> None:
    nothing = headline([figures("person", "new", "test", None, 0.0, None)], [], None)
    assert (nothing.state, nothing.tag) == ("open", "No contract set")
    assert "the AP of person is undefined: the test set holds none" in nothing.sentence
    kept = headline(YARD[:1], [], 0.6)
    assert (
        kept.sentence
        == "Person kept 200% of its pretrained AP on the test set; no class was added."
    )


def test_without_contract_the_source_set_speaks_first() -> None:
    assert headline(YARD, [], 0.6).numbers[0].context == "person, source set; interval 90% to 105%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.949, "95%"), (0.9949, "99.5%"), (0.9994, "99.9%"), (0.9996, "100%"), (1.2, "120%")],
    ids=str,
)
def test_percent_never_rounds_a_loss_away(value: float, text: str) -> None:
    assert percent(value) == text


def test_words() -> None:
    assert [words(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def learning(name: str, least: float, found: float | None, by: str = "estimate") -> Clause:
    holds = found is not None and found >= least
    reached = None if found is None else Estimate(found)
    return Clause(name, "test", least, reached, holds, by=by, kind="learned")


KEPT = Clause("person", "source", 0.95, Estimate(0.97), True)


@pytest.mark.parametrize(
    ("aps", "contract", "state", "ending"),
    [
        (
            (0.5, 0.7),
            [learning("helmet", 0.3, 0.5), learning("forklift", 0.3, 0.7)],
            "holds",
            ", and helmet and forklift were learned to AP 0.50 and 0.70 (at least 0.3 was asked).",
        ),
        (
            (0.01, 0.7),
            [learning("helmet", 0.3, 0.01), learning("forklift", 0.3, 0.7)],
            "breached",
            "; forklift was learned to AP 0.70 (at least 0.3 was asked); helmet reached AP 0.01"
            " where at least 0.3 was asked.",
        ),
        (
            (0.2996, 0.7),
            [learning("helmet", 0.3, 0.2996)],
            "breached",
            "; forklift was learned to AP 0.70; helmet reached AP 0.2996 where at least 0.3 was"
            " asked.",
        ),
        (
            (0.01, 0.7),
            [],
            "holds",
            ", and forklift was learned to AP 0.70; helmet was not learned (AP 0.01).",
        ),
        (
            (0.01, 0.02),
            [learning("helmet", 0.005, 0.01)],
            "holds",
            ", and helmet and forklift were not learned (AP 0.01 and 0.02).",
        ),
        (
            (None, 0.7),
            [learning("helmet", 0.3, None)],
            "breached",
            "; forklift was learned to AP 0.70; the AP of helmet is undefined where at least 0.3"
            " was asked.",
        ),
    ],
    ids=["held", "breached", "by a hair", "no contract", "a contract that asks little", "none"],
)
def test_what_was_learned(
    aps: tuple[float | None, float], contract: list[Clause], state: str, ending: str
) -> None:
    helmet, forklift = aps
    table = [
        YARD[0],
        figures("helmet", "new", "test", None, 0.0, helmet),
        figures("forklift", "like", "test", None, 0.1, forklift),
        YARD[3],
    ]
    top = headline(table, [KEPT, *contract], 0.6)
    assert (top.state, top.sentence) == (
        state,
        f"Person kept 97% of its pretrained AP (at least 95% was asked){ending}",
    )
    if contract:
        assert top.numbers[1].context.endswith(f"asked ≥ {contract[0].least:g}")


def test_many_classes_that_were_not_learned_are_counted() -> None:
    table = [figures(f"kind {index}", "new", "test", None, 0.0, 0.02) for index in range(6)]
    top = headline([YARD[3], *table], [KEPT], 0.1)
    assert top.sentence.endswith("and 6 classes were not learned (AP below 0.1).")


def test_a_loss_on_the_own_test_set_stands_next_to_a_held_contract() -> None:
    table = [figures("person", "keep", "test", 0.5, 0.5, 0.3), *YARD[1:]]
    assert headline(table, [KEPT], 0.5).sentence.startswith(
        "Person kept 97% of its pretrained AP (at least 95% was asked), but on the test set person"
        " only 60%, and helmet"
    )
