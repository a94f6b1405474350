"""Options that come by name, from a command line or a file: what there is, and words for what does not fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """The words that suggest the one of `names` that is near `name`; nothing where none is."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def taken(function: Callable, *, keyword_only: bool = False) -> dict[str, object]:
    """{name: default} of what `function` takes by name."""
    kinds = (inspect.Parameter.KEYWORD_ONLY,) + (() if keyword_only else (inspect.Parameter.POSITIONAL_OR_KEYWORD,))
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind in kinds}


def check(who: str, options: dict, there_are: dict[str, object]) -> None:
    """Refuse an option that is not in `there_are` (of `taken`), and text where the default is a number or a truth.

    Raises:
        TypeError: names the option and, for an unknown one, the nearest there is and all of them.
    """
    for name, value in options.items():
        if name not in there_are:
            all_of_them = f"there are {', '.join(there_are)}" if there_are else "there are none"
            near = nearest(name, there_are)
            raise TypeError(f"{who}: unknown option {name}{near}{'' if near else ';'} {all_of_them}")
        if isinstance(value, str) and isinstance(there_are[name], (int, float)):
            kind = "true or false" if isinstance(there_are[name], bool) else "a number"
            raise TypeError(f"{who}: {name} must be {kind}, got {value!r}")


def create(what: str, names: dict[str, Callable], name: str, options: dict, there_are: Callable = taken):
    """names[name](**options), after a look at the names of both.

    Raises:
        ValueError: for an unknown name. TypeError: as `check` does.
    """
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, names))}, got {name!r}")
    check(f"{what} {name!r}", options, there_are(names[name]))
    return names[name](**options)
