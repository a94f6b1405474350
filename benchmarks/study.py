"""Which remedy helps which complaint about VAE samples, by how much: train, measure, and write the page.

python -m benchmarks.study [--seeds 3] [--workers 2] [--epochs 25] [--only NAME] [--runs FOLDER] [--report]

One factor at a time from one base (convolutions, optimal sigma, z = 16), equal steps, architectures of equal
parameters. Each (variant, seed) is a run of `vaefast.training` in --runs and a JSON of its measures beside it; what is
there already is not done again, and a run that was cut short goes on. The page, its pictures and all numbers go to
benchmarks/results/study/; --report makes page and pictures again from study.json alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import facts, pages, pool
from benchmarks.study_page import SHOWN, page, pictures
from vaefast import checkpoint

RESULTS = Path(__file__).parent / "results/study"
SAMPLES = 4000  # as many as there are digits to train on: of 1,000, FD tells their number as much as their faults
BASE = {
    "data": "digits",
    "data_options": "every=5",
    "model": "conv",
    "likelihood": "optimal_sigma",
    "latent": 16,
    "batch_size": 64,
    "lr": 3e-3,  # at 1e-3 no variant is near its end after so few steps, and z is far from N(0, I) in all of them
    "warmup": 300,  # without it sigma = 1, whose gradient by z is small, lets go of z in the first steps
    "critic_lr": 1e-3,  # read by the adversarial variants alone
}


class Variant(NamedTuple):
    """factor: what it changes; against: the variant that differs in nothing else; settings: what differs from BASE;
    samplers: those beside N(0, I) that are fitted after training, "own" the one that the settings name."""

    factor: str
    against: str | None
    settings: dict
    samplers: tuple[str, ...] = ("gmm",)


_ALL_SAMPLERS = ("gmm", "two_stage", "flow")
VARIANTS = {
    "optimal sigma": Variant("objective", None, {}, _ALL_SAMPLERS),
    "sigma = 1": Variant(
        "objective", "optimal sigma", {"likelihood": "gaussian", "model_options": 'likelihood_options={"logvar":0.0}'}
    ),
    "beta = 0.1": Variant("objective", "optimal sigma", {"objective_options": "beta=0.1"}),
    "beta = 4": Variant("objective", "optimal sigma", {"objective_options": "beta=4"}),
    "free bits": Variant("objective", "optimal sigma", {"objective_options": "free_bits=0.25"}),
    "WAE": Variant("objective", "optimal sigma", {"objective": "wae_mmd", "objective_options": "weight=300"}),
    "InfoVAE": Variant("objective", "optimal sigma", {"objective": "info_vae"}),
    "beta-TCVAE": Variant("objective", "optimal sigma", {"objective": "beta_tcvae"}),
    "logistic mixture": Variant("likelihood", "optimal sigma", {"likelihood": "discretized_logistic_mixture"}),
    "dense": Variant(
        "architecture",
        "optimal sigma",
        {"model": "dense", "model_options": "encoder_hidden=[256,128] decoder_hidden=[128,256]"},
    ),
    "residual": Variant("architecture", "optimal sigma", {"model": "residual"}, _ALL_SAMPLERS),
    "residual, relu": Variant("activation", "residual", {"model": "residual", "model_options": "activation=relu"}),
    "residual, gelu": Variant("activation", "residual", {"model": "residual", "model_options": "activation=gelu"}),
    "residual, tanh": Variant("activation", "residual", {"model": "residual", "model_options": "activation=tanh"}),
    "+ GAN": Variant(
        "GAN", "optimal sigma", {"objective": "vaegan", "objective_options": "reconstruction=likelihood width=16"}
    ),
    "+ GAN, Larsen": Variant("GAN", "optimal sigma", {"objective": "vaegan_larsen", "objective_options": "width=16"}),
    "recipe best": Variant("recipe", "optimal sigma", {"recipe": "best"}, ("gmm", "own")),
}


# --- one run ---


def settings_of(name: str, seed: int, epochs: int, runs: Path) -> dict:
    variant = VARIANTS[name].settings
    # a recipe brings its own model; data and steps are the study's
    base = {k: v for k, v in BASE.items() if "recipe" not in variant or k in ("data", "data_options", "batch_size")}
    folder = f"{name.replace(' ', '_').replace(',', '').replace('=', '')}-{seed}"
    return base | variant | {"epochs": epochs, "seed": seed, "output": str(runs / folder), "threads": 1}


def one(name: str, seed: int, epochs: int, runs: Path) -> dict:
    """Train, evaluate with every sampler, and store: what is returned is what lies in measures.json."""
    from vaefast import data, metrics, sampling, training
    from vaefast.runs import Run

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    given = settings_of(name, seed, epochs, runs)
    settings = {k: v for k, v in given.items() if k != "output"}  # where it lies changes nothing
    stored = Path(given["output"], "measures.json")
    if stored.exists():
        found = json.loads(stored.read_text())
        if found["settings"] == settings and found["samples"] == SAMPLES:
            return found
    started = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        run = training.run(training.Settings(**given, resume=True), say=lambda line: None)
    trained = time.process_time() - started
    model = training.load(given["output"])
    options = dict(pair.split("=") for pair in given["data_options"].split())
    split = data.load(given["data"], **{key: int(value) for key, value in options.items()})
    found = {
        "variant": name,
        "seed": seed,
        "settings": settings,
        "samples": SAMPLES,
        "train_images": len(split.train),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": run["epochs"] * -(-len(split.train) // given["batch_size"]),
        "train_cpu_seconds": trained,
        "samplers": {},
    }
    for sampler in ("normal", *VARIANTS[name].samplers):
        fitted = None
        if sampler == "own":
            own = Run(given["output"])
            fitted = own.sampler(own.sampler_name, seed)
        elif sampler != "normal":
            fitted = sampling.fitted(sampler, model, split.train, seed=seed)
        measures = metrics.evaluate(
            model,
            split.train,
            split.test,
            samples=SAMPLES,
            sampler=fitted,
            seed=seed,
            progress=False,
            importance_samples=100 if sampler == "normal" else 0,
            likelihood_images=200,
        )
        found["samplers"][sampler] = {
            "measures": measures,
            "images": pages.packed(metrics.draw(model, SHOWN, sampler=fitted, seed=seed)),
        }
    found["cpu_seconds"] = time.process_time() - started  # training and measuring, of one core
    checkpoint.write_json(stored, found)
    return found


# --- all runs ---


def results_of(found: list[dict]) -> dict:
    """What study.json holds."""
    first = found[0]["samplers"]["normal"]["measures"]
    attainable = {m: first[m]["training_images"] for m in ("frechet_distance", "precision", "recall", "coverage")}
    return {
        **facts.measured("cpu"),
        "cpu_seconds": sum(run["cpu_seconds"] for run in found),
        "train_images": found[0]["train_images"],
        "test_images": first["frechet_distance"]["real"],
        "samples": SAMPLES,
        "steps": found[0]["steps"],
        "batch_size": BASE["batch_size"],
        "latent": BASE["latent"],
        "attainable": attainable,
        "variants": {
            n: {"factor": v.factor, "against": v.against, "settings": v.settings} for n, v in VARIANTS.items()
        },
        "runs": found,
    }


def _distances(run: dict) -> str:
    distances = {k: v["measures"]["frechet_distance"]["value"] for k, v in run["samplers"].items()}
    return "FD " + ", ".join(f"{k} {value:.0f}" for k, value in distances.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--only", metavar="NAME", help="the variants whose name contains NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="the page and pictures alone, from study.json")
    options = parser.parse_args(arguments)
    names = [n for n in VARIANTS if (options.only or "") in n]
    if not names:
        parser.error(f"--only {options.only}: there are {', '.join(VARIANTS)}")
    stored, written = options.results / "study.json", options.results / "study.md"
    if options.report:
        results = json.loads(stored.read_text())
        pages.write(written, page(results), pictures(results))
        return 0
    wanted = {
        f"{name}, seed {seed}": (name, seed, options.epochs, options.runs)
        for seed in range(options.seeds)
        for name in names
    }
    found = pool.run_all(one, wanted, options.workers, _distances)
    if done := [run for run in found if run]:
        options.results.mkdir(parents=True, exist_ok=True)
        results = results_of(done)
        checkpoint.write_json(stored, results)
        pages.write(written, page(results), pictures(results))
    return int(None in found)


if __name__ == "__main__":
    sys.exit(main())
