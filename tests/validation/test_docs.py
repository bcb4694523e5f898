"""The rules in docs/data.md are the registry's."""

from pathlib import Path

from topwork.validation.rules import RULES, SEVERITIES, rules_table


def test_the_table_of_rules_is_the_registry(root: Path) -> None:
    text = (root / "docs" / "data.md").read_text()
    shown = text.split("<!-- rules: ", 1)[1].split("-->\n", 1)[1].split("<!-- end of rules -->")[0]
    assert shown.strip() == rules_table().strip(), (
        "docs/data.md: print the table again, its comment has the command"
    )


def test_explanations_are_one_line_and_names_are_plain() -> None:
    for rule in RULES.values():
        assert rule.severity in SEVERITIES
        assert rule.explains[-1] in ".?"
        assert "\n" not in rule.explains
        assert rule.name == rule.name.lower().strip("-")
