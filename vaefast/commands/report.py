"""`vaefast report`."""

from __future__ import annotations

from pathlib import Path

from vaefast import checkpoint
from vaefast.commands import inputs
from vaefast.report import page


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="write a page that shows a run",
        description="Write one HTML page that shows all of a run: curves, samples, reconstructions, the latent space, "
        "measures, configuration, machine. It needs no other file and no network; open it in any browser, send it, "
        "or print it. Several runs share a page and are compared at its top.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a folder that `vaefast train` made")
    parser.add_argument("--output", metavar="FILE", help="where the page goes (RUN/report.html of the first RUN)")
    parser.set_defaults(command=report)


def report(runs: list[str], output: str | None) -> None:
    opened = [inputs.opened(run, "a report") for run in runs]
    path = Path(output or opened[0].folder / "report.html")
    inputs.make_folder(path.parent)
    checkpoint.write(path, page(opened).encode())
    print(path)
