"""Which remedy helps which complaint about VAE samples, by how much: train, measure, and write the page.

python -m benchmarks.study [--seeds 3] [--workers 2] [--epochs 25] [--only NAME] [--runs FOLDER] [--report]

One factor at a time from one base (convolutions, optimal sigma, z = 16), equal steps, architectures of equal
parameters. Each (variant, seed) is a run of `vaefast.training` in --runs and a JSON of its measures beside it; what is
there already is not done again, and a run that was cut short goes on. The page, its pictures and all numbers go to
benchmarks/results/study.md, study-*.png and study.json; --report makes them from what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import facts
from vaefast.training import checkpoint

RESULTS = Path(__file__).parent / "results"
SAMPLES = 1000
_SHOWN = 12  # samples of each variant in the pictures
BASE = {
    "data": "digits",
    "data_options": "every=5",
    "model": "conv",
    "likelihood": "optimal_sigma",
    "latent": 16,
    "batch_size": 64,
    "lr": 1e-3,
}


class Variant(NamedTuple):
    """factor: what it changes; against: the variant that differs in nothing else; settings: what differs from BASE;
    samplers: those beside N(0, I) that are fitted after training."""

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
    "dense": Variant("architecture", "optimal sigma", {"model": "dense"}),
    "residual": Variant("architecture", "optimal sigma", {"model": "residual"}, _ALL_SAMPLERS),
    "residual, relu": Variant("activation", "residual", {"model": "residual", "model_options": "activation=relu"}),
    "residual, tanh": Variant("activation", "residual", {"model": "residual", "model_options": "activation=tanh"}),
    "+ GAN": Variant(
        "GAN", "optimal sigma", {"objective": "vaegan", "objective_options": "reconstruction=likelihood width=16"}
    ),
    "+ GAN, Larsen": Variant("GAN", "optimal sigma", {"objective": "vaegan_larsen", "objective_options": "width=16"}),
    "recipe best": Variant("recipe", "optimal sigma", {"recipe": "best"}),
}


class Measure(NamedTuple):
    """What the page says of an entry of `metrics.evaluate`. better: +1 where higher is better, -1 lower, 0 nearer to
    1."""

    title: str
    complaint: str
    better: int


MEASURES = {
    "frechet_distance": Measure("FD-lite0", "inconsistent", -1),
    "precision": Measure("precision", "inconsistent", 1),
    "recall": Measure("recall", "repeated", 1),
    "coverage": Measure("coverage", "repeated", 1),
    "sharpness_ratio": Measure("sharpness", "blurred", 0),
    "active_units": Measure("active units", "collapse", 1),
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

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    given = settings_of(name, seed, epochs, runs)
    stored = Path(given["output"], "measures.json")
    if stored.exists():
        found = json.loads(stored.read_text())
        if found["settings"] == given:
            return found
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        run = training.run(training.Settings(**given, resume=True), say=lambda line: None)
    trained = time.perf_counter() - started
    model = training.load(given["output"])
    options = dict(pair.split("=") for pair in given["data_options"].split())
    split = data.load(given["data"], **{key: int(value) for key, value in options.items()})
    found = {
        "variant": name,
        "seed": seed,
        "settings": given,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": run["epochs"] * -(-len(split.train) // given["batch_size"]),
        "train_seconds": trained,
        "samplers": {},
    }
    for sampler in ("normal", *VARIANTS[name].samplers):
        fitted = None
        begun = time.perf_counter()
        if sampler != "normal":
            torch.manual_seed(seed)
            fitted = sampling.create(sampler).fit(model, split.train)
        fit_seconds = time.perf_counter() - begun
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
        found["samplers"][sampler] = {"fit_seconds": fit_seconds, "measures": measures}
        images = metrics.draw(model, _SHOWN, sampler=fitted, seed=seed)
        checkpoint.write(Path(given["output"], f"samples-{sampler}.pt.json"), json.dumps(images.tolist()).encode())
    found["evaluate_seconds"] = time.perf_counter() - started - trained
    checkpoint.write_json(stored, found)
    return found


# --- the page ---


def value(run: dict, measure: str, sampler: str = "normal") -> float:
    return run["samplers"][sampler]["measures"][measure]["value"]


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and 95 % interval of the mean over seeds (Student's t); of two or less, the values themselves."""
    mean = statistics.fmean(values)
    if len(values) < 3:
        return " / ".join(f"{v:.{digits}g}" for v in values)
    return f"{mean:.{digits}g} ± {_half(values):.2g}"


_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 97.5 % quantile by number of values


def _half(values: list[float]) -> float:
    quantile = _T[max(n for n in _T if n <= max(len(values), 2))]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _rows(runs: list[dict], of: Callable[[dict], dict[str, float]]) -> dict[str, list[float]]:
    rows = [of(run) for run in runs]
    return {name: [row[name] for row in rows] for name in rows[0]}


def effect(better: list[float], worse: list[float], measure: str) -> tuple[str, str]:
    """Of a variant against another, seed by seed: the change in words, and helps, hurts or unclear. It is clear where
    every seed agrees, and the 95 % interval of the paired differences leaves out 0 or the seeds are less than three."""
    direction = MEASURES[measure].better
    distance = (lambda v: -abs(math.log(max(v, 1e-6)))) if direction == 0 else (lambda v: direction * v)
    gains = [distance(b) - distance(w) for b, w in zip(better, worse, strict=True)]
    mean_b, mean_w = statistics.fmean(better), statistics.fmean(worse)
    change = f"{mean_w:.3g} → {mean_b:.3g}"
    if mean_w and direction == -1:
        change += f" ({100 * (mean_b / mean_w - 1):+.0f} %)"
    agree = all(g > 0 for g in gains) or all(g < 0 for g in gains)
    clear = agree and (len(gains) < 3 or abs(statistics.fmean(gains)) > _half(gains))
    return change, ("helps" if gains[0] > 0 else "hurts") if clear else "unclear"


def page(found: dict[tuple[str, int], dict], results: dict) -> str:
    names = [n for n in VARIANTS if any(key[0] == n for key in found)]
    seeds = {n: [s for (name, s) in sorted(found) if name == n] for n in names}
    runs = {n: [found[n, s] for s in seeds[n]] for n in names}
    columns = list(MEASURES)
    lines = [
        "# Which remedy helps which complaint",
        "",
        "Made by `python -m benchmarks.study` from the numbers in study.json; nothing below is written by hand.",
        "",
        f"{results['machine']['cpu']}, {results['machine']['cores']} cores; commit {results['commit'][:12]}, "
        f"torch {results['versions']['torch']}, {results['date']}. "
        f"{results['train_images']} digits to train on, {results['test_images']} held out; {results['steps']} steps of "
        f"{BASE['batch_size']} for every variant; z of {BASE['latent']}; {SAMPLES} samples against the held-out ones. "
        "Means over seeds ± half a 95 % interval (Student's t). FD-lite0 is a Fréchet distance in the features of "
        "EfficientNet-lite0; it is not FID and compares with nothing but itself. As many training digits in the "
        f"samples' place get {results['attainable']}. Sharpness is the variance of the Laplacian as a ratio to real "
        "digits: 1 is best.",
        "",
        "![Samples of every variant](study-samples.png)",
        "",
        "## Every variant, sampled from N(0, I)",
        "",
        _line(["variant", "parameters", "train s", *[MEASURES[c].title for c in columns], "NLL"]),
        _line(["---"] * (4 + len(columns))),
    ]
    for n in names:
        cells = [spread([value(r, c) for r in runs[n]]) for c in columns]
        nll = [r["samplers"]["normal"]["measures"]["nll"]["value"] for r in runs[n]]
        nll = spread(nll, 4) if all(v is not None for v in nll) else ""
        seconds = statistics.fmean(r["train_seconds"] for r in runs[n])
        lines.append(_line([n, f"{runs[n][0]['parameters']:,}", f"{seconds:.0f}", *cells, nll]))
    lines += [
        "",
        "NLL in nats per digit by 100 importance samples of 200 held-out digits; it compares within one likelihood "
        "only (densities of an optimal sigma, probabilities of a logistic mixture). WAE, InfoVAE: no bound of it.",
        "",
        "## What each remedy does",
        "",
        "Against the variant that differs in this one thing, seed by seed. *Unclear*: the seeds disagree, or the "
        "interval of their differences holds 0.",
        "",
        _line(["remedy", "against", *[f"{MEASURES[c].title} ({MEASURES[c].complaint})" for c in columns]]),
        _line(["---"] * (2 + len(columns))),
    ]
    verdicts: dict[str, dict[str, str]] = {}
    for n in names:
        against = VARIANTS[n].against
        shared = [s for s in seeds[n] if against and (against, s) in found]
        if not shared:
            continue
        cells = []
        for c in columns:
            pair = [[value(found[which, s], c) for s in shared] for which in (n, against)]
            change, verdict = effect(*pair, c)
            verdicts.setdefault(n, {})[c] = verdict
            cells.append(f"{change} **{verdict}**" if verdict != "unclear" else f"{change} unclear")
        lines.append(_line([n, against, *cells]))
    lines += ["", "## Samplers after training", ""]
    sampled = [n for n in names if len(runs[n][0]["samplers"]) > 1]
    lines += [_line(["model", "sampler", "fit s", *[MEASURES[c].title for c in columns[:-1]]])]
    lines += [_line(["---"] * (2 + len(columns)))]
    for n in sampled:
        for sampler in runs[n][0]["samplers"]:
            cells = [spread([value(r, c, sampler) for r in runs[n]]) for c in columns[:-1]]
            fit = statistics.fmean(r["samplers"][sampler]["fit_seconds"] for r in runs[n])
            lines.append(_line([n, sampler, f"{fit:.0f}", *cells]))
    lines += ["", "![Fréchet distances with N(0, I) and with a mixture](study-distances.png)", "", "## In words", ""]
    lines += _words(verdicts)
    lines += ["", "## What had to show", ""]
    lines += _expectations(found, seeds)
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _words(verdicts: dict[str, dict[str, str]]) -> list[str]:
    """For each complaint, the remedies that help it, that hurt it, and that do neither clearly."""
    lines = []
    for complaint in dict.fromkeys(m.complaint for m in MEASURES.values()):
        columns = [c for c, m in MEASURES.items() if m.complaint == complaint]
        for c in columns:
            sorted_out = {v: [n for n in verdicts if verdicts[n][c] == v] for v in ("helps", "hurts", "unclear")}
            said = "; ".join(f"{v}: {', '.join(names) or 'none'}" for v, names in sorted_out.items())
            lines.append(f"- **{complaint}**, by {MEASURES[c].title}: {said}.")
    return lines


def _expectations(found: dict, seeds: dict) -> list[str]:
    def ratio(a, b, measure="frechet_distance", sa="normal", sb="normal"):
        shared = [s for s in seeds.get(a, []) if (b, s) in found]
        if not shared:
            return None
        means = [statistics.fmean(value(found[n, s], measure, k) for s in shared) for n, k in ((a, sa), (b, sb))]
        return means[0] / max(means[1], 1e-9), means

    base, lines = "optimal sigma", []

    def say(what: str, holds: bool | None, got: str) -> None:
        lines.append(f"- {what}: {got}. **{'met' if holds else 'missed'}**")

    if r := ratio(base, "sigma = 1"):
        active = [value(found[base, s], "active_units") for s in seeds[base]]
        say(
            "optimal sigma against sigma = 1: FD at least 35 % lower, all 16 units active",
            r[0] <= 0.65 and min(active) >= 16,
            f"{100 * (1 - r[0]):.0f} % lower, {min(active):.0f} of 16 active",
        )
    if r := ratio("residual", base):
        say("residual against convolutions: FD at least 25 % lower", r[0] <= 0.75, f"{100 * (1 - r[0]):.0f} % lower")
    if r := ratio("+ GAN", base, "precision"):
        sharp, recall = ratio("+ GAN", base, "sharpness_ratio"), ratio("+ GAN", base, "recall")
        said = [
            f"{name} {w:.2f} → {g:.2f}"
            for name, (_, (g, w)) in zip(("precision", "sharpness", "recall"), (r, sharp, recall), strict=True)
        ]
        holds = r[0] > 1 and sharp[0] > 1 and recall[0] >= 1
        say("+ GAN: precision and sharpness higher, recall not below", holds, ", ".join(said))
    if r := ratio(base, base, sa="gmm"):
        say("GMM against N(0, I): FD at least 50 % lower", r[0] <= 0.5, f"{100 * (1 - r[0]):.0f} % lower")
    if ("recipe best", 0) in found:
        best = {
            (n, k): statistics.fmean(value(found[n, s], "frechet_distance", k) for s in seeds[n])
            for n in seeds
            for k in found[n, seeds[n][0]]["samplers"]
        }
        first = min(best, key=best.get)
        say(
            "the recipe wins",
            first[0] == "recipe best",
            f"the lowest FD is {best[first]:.0f}, of {first[0]} with {first[1]}",
        )
    return lines


def pictures(found: dict[tuple[str, int], dict]) -> dict[str, bytes]:
    from matplotlib.figure import Figure

    from vaefast import metrics  # noqa: F401 - the names of samplers are those of its results

    names = [n for n in VARIANTS if (n, 0) in found]
    rows = [(n, s) for n in names for s in found[n, 0]["samplers"] if s in ("normal", "gmm")]
    figure = Figure(figsize=(10, 0.62 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), 1)
    for ax, (n, sampler) in zip(axes, rows, strict=True):
        stored = Path(found[n, 0]["settings"]["output"], f"samples-{sampler}.pt.json")
        images = torch.tensor(json.loads(stored.read_text()), dtype=torch.uint8)
        ax.imshow(torch.cat(list(images[:, 0]), 1), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(
            f"{n}\n{'N(0, I)' if sampler == 'normal' else sampler}", rotation=0, ha="right", va="center", size=7
        )
    sheets = {"study-samples.png": _png(figure)}

    figure = Figure(figsize=(8, 0.32 * len(names) + 1), layout="constrained")
    ax = figure.subplots()
    for offset, sampler, colour in ((-0.18, "normal", "#9a9a9a"), (0.18, "gmm", "#1b6ca8")):
        seeds = {n: [found[key] for key in found if key[0] == n] for n in names}
        values = {n: [value(r, "frechet_distance", sampler) for r in seeds[n]] for n in names}
        at = [i + offset for i in range(len(names))]
        ax.barh(
            at,
            [statistics.fmean(values[n]) for n in names],
            0.34,
            color=colour,
            label={"normal": "N(0, I)"}.get(sampler, "GMM-10"),
        )
        for y, n in zip(at, names, strict=True):
            ax.plot(values[n], [y] * len(values[n]), "k.", markersize=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("FD-lite0 (lower is better); dots are seeds")
    ax.legend()
    ax.grid(axis="x", alpha=0.3)
    sheets["study-distances.png"] = _png(figure)
    return sheets


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def report(found: dict[tuple[str, int], dict], folder: Path, seconds: float | None) -> None:
    any_run = next(iter(found.values()))
    fd = any_run["samplers"]["normal"]["measures"]["frechet_distance"]
    recall, coverage = (any_run["samplers"]["normal"]["measures"][m]["training_images"] for m in ("recall", "coverage"))
    results = {
        "machine": facts.machine("cpu"),
        "versions": facts.versions(),
        **facts.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "seconds": seconds,
        "train_images": 4000,
        "test_images": fd["real"],
        "steps": any_run["steps"],
        "attainable": f"FD {fd['training_images']:.0f}, recall {recall:.2f}, coverage {coverage:.2f}",
        "runs": [
            {**run, "settings": {k: v for k, v in run["settings"].items() if k != "output"}} for run in found.values()
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures(found).items():
        checkpoint.write(folder / name, content)
    checkpoint.write_json(folder / "study.json", results)
    checkpoint.write(folder / "study.md", page(found, results).encode())
    print(f"written: {folder / 'study.md'}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--only", metavar="NAME", help="the variants whose name contains NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="the page alone, from the runs that are there")
    options = parser.parse_args(arguments)
    names = [n for n in VARIANTS if (options.only or "") in n]
    if not names:
        parser.error(f"--only {options.only}: there are {', '.join(VARIANTS)}")
    wanted = [(n, seed) for seed in range(options.seeds) for n in names]
    if options.report:
        wanted = [
            (n, s)
            for n, s in wanted
            if Path(settings_of(n, s, options.epochs, options.runs)["output"], "measures.json").exists()
        ]
    started, found, failed = time.perf_counter(), {}, 0
    context = multiprocessing.get_context("spawn")  # each worker loads the features' network once
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        tasks = {pool.submit(one, n, s, options.epochs, options.runs): (n, s) for n, s in wanted}
        for task in as_completed(tasks):
            name, seed = tasks[task]
            try:
                found[name, seed] = run = task.result()
            except Exception as error:  # the others go on, and the exit status tells
                failed += 1
                print(f"{name}, seed {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            done = f"{time.perf_counter() - started:5.0f} s  {len(found)}/{len(wanted)}"
            fds = ", ".join(f"{k} {value(run, 'frechet_distance', k):.0f}" for k in run["samplers"])
            print(f"{done}  {name}, seed {seed}: FD {fds}", file=sys.stderr, flush=True)
    if found:
        ordered = {key: found[key] for key in wanted if key in found}
        report(ordered, options.results, None if options.report else time.perf_counter() - started)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
