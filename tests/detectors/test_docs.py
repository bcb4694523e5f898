"""docs/surgery.md says what the code finds."""

import importlib.util


def test_the_table_of_class_axes_is_fresh(root):
    spec = importlib.util.spec_from_file_location(
        "surgery_table", root / "docs" / "surgery_table.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (root / "docs" / "surgery.md").read_text(encoding="utf-8")
    assert script.page(text) == text, "run python docs/surgery_table.py"
    assert text.count("| softmax |") == 9
    assert text.count("| sigmoid |") == 3
