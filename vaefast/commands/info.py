"""`vaefast info`."""

from __future__ import annotations

import json

from vaefast.info import info, text


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "info",
        help="show which kernels run here, and why others do not",
        description="Show, for every operation, which backend runs it here, which others could, and why not the rest.",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="the same as JSON")
    parser.set_defaults(command=show)


def show(as_json: bool) -> None:
    facts = info()
    print(json.dumps(facts, indent=2) if as_json else text(facts))
