"""Sets of images spoiled in one known way, on which every measure must move, or is known to be blind.

    python -m vaefast.metrics.controls [--output FILE]

spoils 2,500 real digits, measures them against 2,500 others (which also stand for the training images), and prints the
table; --output stores every number as JSON. The exit status is 1 if a measure does not do what CONTROLS says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from vaefast.metrics.evaluate import ROWS, compare, number
from vaefast.metrics.images import levels, unit_images

BLUR = 1.0  # pixels
NOISE = 0.2
REPEATED = 100  # images, as often as needed
MISSING = 0  # the class
_STILL = 0.1  # a blind measure moves by less than this share of what real images get


class Control(NamedTuple):
    """moves: the measures that must tell, and whether up (+1) or down (-1) from what real images get; blind: those that
    do not get worse, though the images did."""

    moves: dict[str, int]
    blind: tuple[str, ...]


_SPOILED = {"frechet_distance": 1, "kernel_distance": 1, "precision": -1, "density": -1, "recall": -1, "coverage": -1}
# blind to images that are few, or of few kinds
_OF_EACH = ("precision", "density", "sharpness_ratio", "lpips_diversity")
CONTROLS = {
    "blurred": Control(_SPOILED | {"sharpness_ratio": -1}, ()),
    "noised": Control(_SPOILED | {"sharpness_ratio": 1}, ()),
    "repeated": Control(
        {
            "frechet_distance": 1,
            "kernel_distance": 1,
            "recall": -1,
            "coverage": -1,
            "duplicate_rate": 1,
            "vendi_score": -1,
        },
        _OF_EACH,
    ),
    "class missing": Control({"frechet_distance": 1, "kernel_distance": 1, "coverage": -1}, _OF_EACH),
    "memorised": Control(
        {"authenticity": -1},
        ("frechet_distance", "precision", "density", "recall", "coverage", "sharpness_ratio", "duplicate_rate"),
    ),
}


def blurred(images: torch.Tensor, sigma: float = BLUR) -> torch.Tensor:
    """Under a Gaussian of `sigma` pixels, cut at four of them, edges mirrored; uint8 [N, C, H, W]."""
    reach = round(4 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / sigma).square())
    line = (line / line.sum()).expand(images.shape[1], 1, 1, -1)
    x = functional.pad(unit_images(images), (reach,) * 4, "reflect")
    x = functional.conv2d(x, line, groups=len(line))
    return levels(functional.conv2d(x, line.transpose(2, 3), groups=len(line)))


def noised(images: torch.Tensor, sigma: float = NOISE, *, seed: int = 0) -> torch.Tensor:
    """With normal noise of `sigma` on levels in [0, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return levels(unit_images(images) + sigma * noise)


def repeated(images: torch.Tensor, count: int = REPEATED, *, seed: int = 0) -> torch.Tensor:
    """As many images as there are, but only `count` different ones."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[chosen.repeat(-(-len(images) // len(chosen)))[: len(images)]]


def measure(
    images: torch.Tensor,
    labels: torch.Tensor,
    reference: torch.Tensor,
    *,
    missing: int = MISSING,
    seed: int = 0,
    **options,
) -> dict[str, dict[str, dict]]:
    """What `compare` gives for the images as they are ("real") and for each of CONTROLS made of them.

    Args:
        images, labels: uint8 [N, C, H, W] and the class of each.
        reference: the real images to compare with, which stand for the training images too.
        missing: the class that "class missing" lacks.
        options: of `compare`.
    """
    sets = {
        "real": images,
        "blurred": blurred(images),
        "noised": noised(images, seed=seed),
        "repeated": repeated(images, seed=seed),
        "class missing": images[labels != missing],
        "memorised": reference,
    }
    return {name: compare(x, reference, reference, seed=seed, **options) for name, x in sets.items()}


def failures(results: dict[str, dict[str, dict]]) -> list[str]:
    """What in the results of `measure` is not as CONTROLS says, in words; measures that were not taken are passed over.

    A measure that must move has its whole interval beyond what real images get; a blind one gets no worse by more than
    a tenth.
    """
    found = []
    for name, control in CONTROLS.items():
        for measure_name, sign in control.moves.items():
            real, got = results["real"][measure_name], results[name][measure_name]
            if real["value"] is None:
                continue
            if (got["low"] <= real["value"]) if sign > 0 else (got["high"] >= real["value"]):
                way = "rise" if sign > 0 else "fall"
                found.append(f"{name}: {got['label']} must {way} from {real['value']:.3g}, got {got['value']:.3g}")
        for measure_name in control.blind:
            real, got = results["real"][measure_name], results[name][measure_name]
            if real["value"] is None:
                continue
            change = got["value"] - real["value"]
            worse = {"lower": change, "higher": -change, "real": abs(change)}[got["direction"]]
            if worse > _STILL * real["value"]:
                found.append(
                    f"{name}: {got['label']} is blind to it, but went from {real['value']:.3g} to {got['value']:.3g}"
                )
    return found


def table(results: dict[str, dict[str, dict]]) -> str:
    """A row for each set and a column for each measure, as Markdown: bold where it tells, (in brackets) where blind."""
    names = [name for name in ROWS if name in results["real"] and results["real"][name]["value"] is not None]
    header = " | ".join(results["real"][name]["label"] for name in names)
    lines = [f"| | {header} |", "|---" * (len(names) + 1) + "|"]
    for control, entries in results.items():
        moves, blind = CONTROLS.get(control, Control({}, ()))
        cells = []
        for name in names:
            text = number(entries[name]["value"])
            cells.append(f"**{text}**" if name in moves else f"({text})" if name in blind else text)
        lines.append(f"| {control} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    from vaefast.data import digits

    parser = argparse.ArgumentParser(prog="python -m vaefast.metrics.controls", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="store every number here as JSON")
    options = parser.parse_args(arguments)
    data = digits()
    images, labels = torch.cat([data.train, data.test]), torch.cat([data.train_labels, data.test_labels])
    results = measure(images[::2], labels[::2], images[1::2])
    print(table(results))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    wrong = failures(results)
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
