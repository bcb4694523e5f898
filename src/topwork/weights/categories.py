"""Names of class columns: category sets shipped as files, a user's list, or a user's file."""

from collections.abc import Sequence
from pathlib import Path

from topwork.classes import BACKGROUND, CATEGORY_SETS, UNUSED, category_set
from topwork.errors import WeightsError


def columns_of(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Class columns from a category set's name, a text file (one name a line, `#` starts a comment
    line) or a list.

    Background is put in front where the names don't begin with it; `N/A` stands for an unused
    column.

    Raises:
        WeightsError: no such set or file, an empty name, or a name that two columns have.
    """
    if isinstance(classes, str):
        path = Path(classes)
        looks_like_a_file = bool(path.suffix) or len(path.parts) > 1
        if classes in CATEGORY_SETS or not (looks_like_a_file or path.is_file()):
            return category_set(classes)
        if not path.is_file():
            raise WeightsError(
                f"fetch.classes: {classes}: no such file; expected text, one class name a line."
            )
        where = classes
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(
                f"{classes}: not readable as a list of class names ({error}); expected text, one"
                " name a line."
            ) from error
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    else:
        where, names = "fetch.classes", [name.strip() for name in classes]
    if not names or not all(names):
        raise WeightsError(
            f"{where}: found {'an empty name' if names else 'no name'}; expected one name a column"
            " (N/A where a column is unused)."
        )
    doubles = sorted({name for name in names if name != UNUSED and names.count(name) > 1})
    if doubles:
        raise WeightsError(
            f"{where}: {', '.join(doubles)} named twice; each column has a name of its own (N/A"
            " where it is unused)."
        )
    if BACKGROUND in names[1:]:
        raise WeightsError(
            f"{where}: {BACKGROUND} is number {names.index(BACKGROUND)}; expected it first or not"
            " at all."
        )
    return tuple(names) if names[0] == BACKGROUND else (BACKGROUND, *names)


def check_same_names(given: Sequence[str], own: Sequence[str], source: str) -> None:
    """Compare names that a user gave for columns with those in the weights.

    Raises:
        WeightsError: another number of columns, or another name for a column; both are shown.
    """
    if len(given) != len(own):
        raise WeightsError(
            f"fetch.classes: found {len(given)} columns, the weights have {len(own)}. Leave it out:"
            " these weights have names."
        )
    differing = [
        f"{index} is {mine!r}, fetch.classes has {name!r}"
        for index, (name, mine) in enumerate(zip(given, own, strict=True))
        if name != mine
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise WeightsError(
            f"{source}: its columns have other names than fetch.classes: column"
            f" {'; column '.join(differing[:5])}{more}."
            " Leave fetch.classes out: these weights have names; a class gets another name"
            " by `NEW NAME: {keep: NAME}` under surgery.classes."
        )
