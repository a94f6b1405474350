"""`vaefast sample`, `reconstruct` and `interpolate`: pictures from a run's model."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from vaefast import checkpoint
from vaefast.commands import inputs
from vaefast.nn import unit
from vaefast.runs import Run
from vaefast.training import pictures as draw

_SHEET = "FILE.png for one sheet, FILE.npy for the numbers, or a folder for a PNG each"


def add(subparsers) -> None:
    sample = subparsers.add_parser(
        "sample",
        help="draw new images from a trained model",
        description="Draw new images from a model that `vaefast train` left in the folder RUN.",
    )
    inputs.add_run(sample)
    sample.add_argument(
        "-n", type=inputs.at_least(1), default=100, dest="count", metavar="N", help="how many (%(default)s)"
    )
    sample.add_argument(
        "--seed",
        type=inputs.at_least(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="the same seed draws the same images (%(default)s)",
    )
    sample.add_argument(
        "--temperature",
        type=inputs.positive,
        default=1.0,
        metavar="T",
        help="scale of the latent noise: below 1 nearer to the typical, above 1 more varied (%(default)s)",
    )
    inputs.add_sampler(sample)
    sample.add_argument("--output", metavar="PATH", help=f"{_SHEET} (RUN/sampled.png)")
    sample.set_defaults(command=_sample)

    reconstruct = subparsers.add_parser(
        "reconstruct",
        help="encode images and decode them again",
        description="Show images and, below each, what the model makes of it.",
    )
    _images(reconstruct, "RUN/reconstructed.png")
    reconstruct.set_defaults(command=_reconstruct)

    interpolate = subparsers.add_parser(
        "interpolate",
        help="walk from one image to another",
        description="Walk in the latent space from the first image to the second, from the third to the fourth, …",
    )
    _images(interpolate, "RUN/interpolated.png")
    interpolate.add_argument(
        "--steps",
        type=inputs.at_least(2),
        default=10,
        metavar="N",
        help="images from one end to the other, both included (%(default)s)",
    )
    interpolate.set_defaults(command=_interpolate)


def _images(parser, output: str) -> None:
    inputs.add_run(parser)
    parser.add_argument(
        "images", metavar="IMAGES", nargs="*", help="image files, or folders of them; without any, held-out data"
    )
    parser.add_argument("--resize", action="store_true", help="scale images of another size to the model's")
    parser.add_argument("--output", metavar="PATH", help=f"{_SHEET} ({output})")


@torch.no_grad()
def _sample(run: str, count: int, seed: int, temperature: float, sampler: str | None, output: str | None) -> None:
    opened = inputs.opened(run, "drawing")
    path = _output(opened, output, "sampled.png")
    fitted = inputs.fitted_sampler(opened, sampler or opened.sampler_name, seed)
    images = opened.model.sample(count, seed=seed, temperature=temperature, sampler=fitted)
    _write(images, path, _columns(count))


@torch.no_grad()
def _reconstruct(run: str, images: list[str], resize: bool, output: str | None) -> None:
    opened = inputs.opened(run, "drawing")
    path = _output(opened, output, "reconstructed.png")
    originals = _given(opened, images, resize, 50)
    reconstructed = opened.model.reconstruct(originals)
    if path.suffix == ".png":
        _say(path, draw.reconstructions(originals, reconstructed, min(10, len(originals))))
    else:
        _write(reconstructed, path, 1)


@torch.no_grad()
def _interpolate(run: str, images: list[str], resize: bool, steps: int, output: str | None) -> None:
    opened = inputs.opened(run, "drawing")
    path = _output(opened, output, "interpolated.png")
    ends = _given(opened, images, resize, 20)
    if not images:
        ends = ends[: max(len(ends) // 2 * 2, 1)]
    if len(ends) % 2:
        raise inputs.CommandError(f"interpolate takes images in pairs, got {len(ends)}")
    # held-out data is sorted by class, so that halves, not neighbours, make a walk worth looking at
    a, b = (ends[::2], ends[1::2]) if images else ends.chunk(2)
    walk = opened.model.interpolate(a, b, steps)  # [pairs, steps, C, H, W]
    _write(walk.flatten(0, 1), path, steps)


def _output(run: Run, output: str | None, default: str) -> Path:
    """Where the command writes.

    Raises:
        CommandError: for a name that says no kind of file, or images where the run's data are none.
    """
    path = Path(output or run.folder / default)
    if path.suffix not in (".png", ".npy", ""):
        raise inputs.CommandError(f"--output must be {_SHEET}, got {path}")
    if path.suffix != ".npy" and not run.pictorial:
        shape = " x ".join(map(str, run.data_shape))
        raise inputs.CommandError(f"{run.folder} is of samples of shape {shape}, no images; take --output FILE.npy")
    return path


def _given(run: Run, images: list[str], resize: bool, count: int) -> torch.Tensor:
    """The images that the user named, else at most `count` that are held out."""
    if images and not run.pictorial:
        raise inputs.CommandError(f"{run.folder} was not trained on images; without IMAGES, held-out data is taken")
    return inputs.images(images, run.data_shape, resize) if images else run.held_out(count)[0]


def _columns(count: int) -> int:
    return min(10, math.ceil(math.sqrt(count)))


def _write(images: torch.Tensor, path: Path, columns: int) -> None:
    """Images [N, C, H, W] as one sheet, as numbers, or as a file each, by the name of `path`; says which."""
    if path.suffix == ".png":
        _say(path, draw.grid(images, columns))
    elif path.suffix == ".npy":
        import numpy as np

        _say(path, checkpoint.content(lambda file: np.save(file, images.numpy())))
    else:
        inputs.make_folder(path)
        for i, image in enumerate(unit(images)):
            checkpoint.write(path / f"{i:0{len(str(len(images) - 1))}}.png", _png(image))
        print(f"{len(images)} images in {path}")


def _say(path: Path, content: bytes) -> None:
    inputs.make_folder(path.parent)
    checkpoint.write(path, content)
    print(path)


def _png(image: torch.Tensor) -> bytes:
    """An image [C, H, W] with levels in [0, 1], pixel for pixel."""
    from PIL import Image

    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).squeeze(-1)
    return checkpoint.content(lambda file: Image.fromarray(levels.numpy()).save(file, "png"))
