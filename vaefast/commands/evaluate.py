"""`vaefast evaluate` and `vaefast compare`: how good runs are, in numbers, and side by side."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import torch

from vaefast import checkpoint, metrics
from vaefast.commands import inputs
from vaefast.data import spread
from vaefast.report.measures import compared, measures, missing, number, table, training_measures
from vaefast.runs import Run
from vaefast.training import pictures

_SHOWN, _COLUMNS = 60, 10  # images of each kind in the sheet of a run
_OWN_PLACE = ("output",)  # settings whose difference between runs says nothing


MOST_IMAGES = 60_000  # of each part: what more of them cost in hours and memory moves no measure


def add(subparsers) -> None:
    evaluate = subparsers.add_parser(
        "evaluate",
        help="measure how good a trained model's images are",
        description="Draw images from the model of the folder RUN, measure them and the model against the data, print "
        "the table, and keep it as RUN/evaluation.json, where `vaefast report` and `vaefast compare` find it.",
    )
    inputs.add_run(evaluate)
    evaluate.add_argument(
        "--samples",
        type=inputs.at_least(6),  # a density looks at five others
        default=2500,
        metavar="N",
        help="how many images to draw and measure; more are slower and steadier, and the distances depend on their "
        "number (%(default)s)",
    )
    evaluate.add_argument(
        "--extractor",
        choices=metrics.features.NAMES,
        default="lite0",
        metavar="NAME",
        help=f"the network in whose features images are compared: {', '.join(metrics.features.NAMES)} (%(default)s)",
    )
    evaluate.add_argument(
        "--importance-samples",
        type=inputs.at_least(0),
        default=100,
        metavar="N",
        help="latents per image for the likelihood; more take longer and give a tighter bound, papers use 5000; 0 "
        "leaves it out (%(default)s)",
    )
    inputs.add_sampler(evaluate)
    evaluate.add_argument(
        "--seed",
        type=inputs.at_least(0, 2**43 - 1),  # metrics draw with 2^20 seeds for each
        default=0,
        metavar="N",
        help="of the drawn images (%(default)s)",
    )
    evaluate.set_defaults(command=_evaluate)

    compare = subparsers.add_parser(
        "compare",
        help="put runs side by side",
        description="Print a table of several runs, the settings that differ and the measures with their intervals, "
        "and write it with a sheet of their images. A value in bold is better than all others by more than the "
        "intervals. `vaefast evaluate` each run first; before that there are only the numbers of its training.",
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="folders that `vaefast train` made, two or more")
    compare.add_argument(
        "--output",
        metavar="FOLDER",
        default="comparison",
        help="where compare.md and compare.png go (%(default)s)",
    )
    compare.set_defaults(command=_compare)


def _evaluate(run: str, samples: int, extractor: str, importance_samples: int, sampler: str | None, seed: int) -> None:
    opened = inputs.opened(run, "an evaluation")
    if not opened.pictorial:
        raise inputs.CommandError(f"{run} has no images to measure: its data has the shape {opened.data_shape}")
    train, test = (spread(data, MOST_IMAGES) for data in (opened.data.train, opened.data.test))
    if (total := len(opened.data.train)) > len(train):
        print(f"compared with {len(train):,} of {total:,} training images, evenly spread", file=sys.stderr)
    sampler = sampler or opened.sampler_name
    options = {"samples": samples, "extractor": extractor, "importance_samples": importance_samples, "seed": seed}
    options["progress"] = sys.stderr.isatty()
    try:
        fitted = inputs.fitted_sampler(opened, sampler, seed)
        found = metrics.evaluate(opened.model, train, test, sampler=fitted, **options)
    except ModuleNotFoundError as error:
        raise inputs.CommandError(f'an evaluation needs {error.name}: pip install "vaefast[metrics]"') from None
    except ValueError as error:
        raise inputs.CommandError(f"{run} cannot be measured: {error}") from None
    path = opened.store_evaluation(found | {"sampler": sampler})
    taken = measures(found).values()
    rows = [[m.label, m.text, "" if m.attained is None else number(m.attained), m.better] for m in taken]
    print(table([["measure", "value [95 %]", "training images", "better"], *rows]))
    for label, reason in missing(found).items():
        print(f"{label}: not measured, {reason}")
    print(f"\nkept as {path}; `vaefast report {run}` shows it")


def _compare(runs: list[str], output: str) -> None:
    if len(runs) < 2:
        raise inputs.CommandError(f"compare takes two or more runs, got {len(runs)}")
    opened = [inputs.opened(run, "a comparison") for run in runs]
    text = _text(opened)
    folder = inputs.make_folder(output)
    files, page = [folder / "compare.md"], f"{text}\n"
    pictorial = [run for run in opened if run.pictorial]
    if pictorial:
        files.append(folder / "compare.png")
        page += "\n![samples and reconstructions](compare.png)\n"
        checkpoint.write(files[-1], _sheet(pictorial))
    checkpoint.write(files[0], page.encode())
    print(text)
    print(f"\n{', '.join(map(str, files))}")
    unmeasured = [str(run.folder) for run in opened if not run.evaluation]
    if unmeasured:
        print(f"not measured yet: {', '.join(unmeasured)}; `vaefast evaluate` does it")


def _text(runs: Sequence[Run]) -> str:
    """A Markdown table: a column per run; the settings that differ, then the measures."""
    names = [str(run.folder) for run in runs]
    settings = dict.fromkeys(name for run in runs for name in run.settings if name not in _OWN_PLACE)
    values = {name: [str(run.settings.get(name, "–")) for run in runs] for name in settings}
    values |= {f"measured with {name}": [_measured_with(run, name) for run in runs] for name in ("sampler", "samples")}
    differ = [[name.replace("_", " "), *cells] for name, cells in values.items() if len(set(cells)) > 1]
    columns = [training_measures(run.metrics) | measures(run.evaluation) for run in runs]
    rows = compared(columns).items()
    marked = [[label, *[f"**{text}**" if best else text for text, best in cells]] for label, cells in rows]
    return table([["", *names], *differ, *marked])


def _measured_with(run: Run, name: str) -> str:
    """What the evaluation, or else the first of its measures that says, has under `name`."""
    places = [run.evaluation, *[entry for entry in run.evaluation.values() if isinstance(entry, dict)]]
    return next((str(place[name]) for place in places if name in place), "–")


@torch.no_grad()
def _sheet(runs: Sequence[Run]) -> bytes:
    """A PNG: for each run its samples, and beside them held-out images with their reconstructions."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=18)
    margin, title = 16, 34
    strips = []
    for run in runs:
        samples = run.samples(_SHOWN)
        x, _ = run.held_out(_SHOWN // 2)
        drawn = pictures.grid(samples, _COLUMNS), pictures.reconstructions(x, run.model.reconstruct(x), _COLUMNS)
        strips.append([Image.open(io.BytesIO(png)) for png in drawn])
    widths = [max(strip[i].width for strip in strips) for i in range(2)]
    heights = [max(picture.height for picture in strip) + title + margin for strip in strips]
    sheet = Image.new("RGB", (sum(widths) + 3 * margin, sum(heights) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    top = margin
    for run, strip, height in zip(runs, strips, heights, strict=True):
        left = margin
        for picture, width, what in zip(strip, widths, ("samples", "held out, and reconstructed"), strict=True):
            draw.text((left, top), f"{run.folder}: {what}", fill="black", font=font)
            sheet.paste(picture, (left, top + title - 8))
            left += width + margin
        top += height
    return checkpoint.content(lambda file: sheet.save(file, "png"))
