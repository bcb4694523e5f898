"""Which rule each class of the data gets in the class plan: kept, started like others, or new; by
name and by what is near.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from topwork.classes import BACKGROUND, UNUSED
from topwork.errors import ClassPlanError

Rule = str | dict[str, Any]
"""As params.yaml writes it."""

PERSONS = ("worker", "pedestrian", "people", "human", "man", "woman", "rider", "driver", "player")
NEAR: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PERSONS, ("person",)),
    "van": ("truck", "car"),
    "forklift": ("truck", "car"),
    "lorry": ("truck",),
    "tractor": ("truck",),
    "excavator": ("truck",),
    "pickup": ("truck", "car"),
    "ambulance": ("truck", "car"),
    "taxi": ("car",),
    "automobile": ("car",),
    "scooter": ("motorcycle",),
    "motorbike": ("motorcycle",),
    "bike": ("bicycle",),
    "cyclist": ("person", "bicycle"),
    "ship": ("boat",),
    "plane": ("airplane",),
    "aeroplane": ("airplane",),
    "phone": ("cell phone",),
    "monitor": ("tv",),
    "sofa": ("couch",),
    "bag": ("handbag", "backpack"),
    "puppy": ("dog",),
    "kitten": ("cat",),
    "lamb": ("sheep",),
    "calf": ("cow",),
    "bull": ("cow",),
}
"""Words of names -> classes of COCO that look alike enough to start from."""


def propose(names: Sequence[str], columns: Sequence[str]) -> dict[str, Rule]:
    """A rule for each class: `keep` where the weights have one of that name, but for case and
    separators; `like` where a class is known to look alike; else `new`. Kept classes come first.

    Example:
        >>> propose(["helmet", "van", "Person"], ["__background__", "person", "truck", "car"])
        {'Person': {'keep': 'person'}, 'van': {'like': ['truck', 'car']}, 'helmet': 'new'}
    """
    known = {_plain(name): name for name in columns if name not in (BACKGROUND, UNUSED)}
    rules: dict[str, Rule] = {}
    for name in names:
        source = known.get(_plain(name)) or known.get(_plain(name).removesuffix("s"))
        if source is not None:
            rules[name] = "keep" if source == name else {"keep": source}
            continue
        near = [other for other in _near(name) if other in columns]
        rules[name] = {"like": near if len(near) > 1 else near[0]} if near else "new"
    return dict(sorted(rules.items(), key=lambda item: _rank(item[1])))


def _near(name: str) -> tuple[str, ...]:
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    return next(
        (NEAR[word] for word in (name.lower(), *reversed(words)) if word in NEAR),
        (),
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()


def _rank(rule: Rule) -> int:
    kind = rule if isinstance(rule, str) else next(iter(rule))
    return ("keep", "like", "new").index(kind)


def keep(rules: dict[str, Rule], wanted: Sequence[str], columns: Sequence[str]) -> dict[str, Rule]:
    """The rules with classes kept that the user names: `person`, or `worker=person` (the data's
    name, then the weights'). A class that the data lack may be kept all the same.

    Raises:
        ClassPlanError: the weights don't have it.
    """
    result = dict(rules)
    for entry in wanted:
        name, _, source = entry.partition("=")
        source = source or name
        if columns and source not in columns:
            near = ", ".join(difflib.get_close_matches(source, columns, n=3))
            raise ClassPlanError(
                f"init: --keep {entry}: the weights have no class {source!r}"
                f"{f' (near: {near})' if near else ''}. They have {', '.join(columns[1:60])}."
            )
        result[name] = "keep" if source == name else {"keep": source}
    return dict(sorted(result.items(), key=lambda item: _rank(item[1])))


def change(rules: dict[str, Rule], text: str, columns: Sequence[str]) -> dict[str, Rule]:
    """The rules with some changed, as a user types them: `van = new; worker = keep person`.

    Raises:
        ClassPlanError: a class that isn't there, or no rule; the message lists what can be written.

    Example:
        >>> change({"van": "new"}, "van = like truck, car", ["person", "truck", "car"])
        {'van': {'like': ['truck', 'car']}}
    """
    result = dict(rules)
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, rule = (part.strip() for part in entry.partition("="))
        kind, _, rest = rule.partition(" ")
        sources = [part.strip() for part in rest.split(",") if part.strip()]
        if not equals or name not in rules or kind not in ("keep", "like", "new", "drop"):
            raise ClassPlanError(
                f"init: {entry!r}: expected a class and a rule, such as `{next(iter(rules))} ="
                " new`, `= keep person`, `= like truck, car` or `= drop`; classes are"
                f" {', '.join(rules)}."
            )
        missing = [source for source in sources if columns and source not in columns]
        if missing or (kind == "like" and not sources) or (kind == "keep" and len(sources) > 1):
            raise ClassPlanError(
                f"init: {entry!r}: {kind} takes {'one class' if kind == 'keep' else 'classes'} of"
                f" the weights; they have {', '.join(columns[1:60])}."
            )
        if kind == "drop":
            del result[name]
        elif kind == "new":
            result[name] = "new"
        elif kind == "keep":
            result = keep(result, [f"{name}={sources[0]}" if sources else name], columns)
        else:
            result[name] = {"like": sources if len(sources) > 1 else sources[0]}
    return dict(sorted(result.items(), key=lambda item: _rank(item[1])))


def kept_as(name: str, rule: Rule) -> str | None:
    """The class of the weights that a rule keeps, if it keeps one.

    Example:
        >>> kept_as("worker", {"keep": "person"}), kept_as("person", "keep"), kept_as("van", "new")
        ('person', 'person', None)
    """
    if isinstance(rule, str):
        return name if rule == "keep" else None
    return rule.get("keep")


def written(rule: Rule) -> str:
    """A rule as params.yaml has it, on one line.

    Example:
        >>> written({"like": ["truck", "cell phone"]})
        '{like: [truck, cell phone]}'
    """
    if isinstance(rule, str):
        return rule
    ((kind, value),) = rule.items()
    shown = f"[{', '.join(map(scalar, value))}]" if isinstance(value, list) else scalar(value)
    return f"{{{kind}: {shown}}}"


def scalar(value: object) -> str:
    """A value as YAML: quoted where it could be read as something else.

    Example:
        >>> scalar("hard hat"), scalar("no"), scalar("7"), scalar("a: b")
        ('hard hat', '"no"', '"7"', '"a: b"')
    """
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z_./][\w ./+-]*", text) and not text.endswith(" ")
    words = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
    if plain and text.lower() not in words:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
