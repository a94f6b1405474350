"""The page and the pictures of the study, from the numbers in study.json alone."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from benchmarks import pages

SHOWN = 10  # samples of each variant in the pictures


class Measure(NamedTuple):
    """What the page says of an entry of `metrics.evaluate`. better: +1 where higher is better, -1 lower, 0 nearer to
    1."""

    title: str
    complaint: str
    better: int


MEASURES = {
    "sharpness_ratio": Measure("sharpness", "blurred", 0),
    "recall": Measure("recall", "repeated", 1),
    "coverage": Measure("coverage", "repeated", 1),
    "frechet_distance": Measure("FD-lite0", "inconsistent", -1),
    "precision": Measure("precision", "inconsistent", 1),
    "active_units": Measure("active units", "collapse", 1),
}
_OF_SAMPLES = [m for m in MEASURES if m != "active_units"]
_PRIOR = "N(0, I)"
_SAMPLERS = {"normal": _PRIOR, "own": "its own"}


class Results:
    """study.json: `results["variants"]` says what each variant changes, `results["runs"]` what each run gave."""

    def __init__(self, results: dict):
        self.about = results
        self.variants = {
            n: v for n, v in results["variants"].items() if any(r["variant"] == n for r in results["runs"])
        }
        self.runs = {(run["variant"], run["seed"]): run for run in results["runs"]}

    def seeds(self, name: str, other: str | None = None) -> list[int]:
        """Those of a variant, or those that two have in common."""
        return sorted(s for n, s in self.runs if n == name and (other is None or (other, s) in self.runs))

    def samplers(self, name: str) -> list[str]:
        return list(self.runs[name, self.seeds(name)[0]]["samplers"])

    def values(self, name: str, measure: str, sampler: str = "normal", seeds: list[int] | None = None) -> list[float]:
        runs = [self.runs[name, s] for s in (self.seeds(name) if seeds is None else seeds)]
        return [run["samplers"][sampler]["measures"][measure]["value"] for run in runs]

    def mean(self, name: str, measure: str, sampler: str = "normal") -> float:
        return statistics.fmean(self.values(name, measure, sampler))


def effect(with_it: list[float], without: list[float], measure: str) -> tuple[str, str]:
    """What a remedy does to a measure, seed by seed: the change in words; and helps, hurts, no change or unclear.

    It is clear where every seed agrees and the 95 % interval of the paired differences leaves out 0; never of one seed.
    """
    better = MEASURES[measure].better
    worth = (lambda v: -abs(math.log(max(v, 1e-6)))) if better == 0 else (lambda v: better * v)
    gains = [worth(a) - worth(b) for a, b in zip(with_it, without, strict=True)]
    before, after = statistics.fmean(without), statistics.fmean(with_it)
    change = f"{pages.number(before)} → {pages.number(after)}"
    if better == -1 and before:
        change += f" ({100 * (after / before - 1):+.0f} %)"
    if not any(gains):
        return change, "no change"
    return change, {1: "helps", -1: "hurts", 0: "unclear"}[pages.sign(gains)]


def page(results: dict) -> str:
    found = Results(results)
    verdicts = _verdicts(found)
    parts = [
        _head(results),
        ["## In words", "", *_words(verdicts), ""],
        ["## What had to show", "", *_expectations(found), ""],
        [f"## Every variant, sampled from {_PRIOR}", "", *_variants(found), ""],
        ["## What each remedy does", "", *_remedies(found, verdicts), ""],
        ["## Samplers after training", "", *_sampled(found), ""],
        ["![Fréchet distances with N(0, I) and with a mixture](study-distances.png)"],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(results: dict) -> list[str]:
    shown = results["attainable"]
    return [
        "# Which remedy helps which complaint",
        "",
        "Made by `python -m benchmarks.study` from the numbers in study.json; nothing below is written by hand.",
        "",
        f"{results['machine']['cpu']}, {results['machine']['cores']} cores; commit {results['commit'][:12]}, torch "
        f"{results['versions']['torch']}, {results['date']}. {results['train_images']} digits to train on, "
        f"{results['test_images']} held out; {results['steps']} steps of {results['batch_size']} and z of "
        f"{results['latent']} for every variant; {results['samples']} samples against the held-out digits. "
        f"{len(results['runs'])} runs took {results['cpu_seconds'] / 60:.0f} minutes of a core. Means over "
        "seeds ± half a 95 % interval (Student's t). FD-lite0 is a Fréchet distance in the features of "
        "EfficientNet-lite0: it is not FID, and compares with nothing but itself. As many training digits in the "
        f"samples' place get FD {shown['frechet_distance']:.0f}, precision {shown['precision']:.2f}, recall "
        f"{shown['recall']:.2f}, coverage {shown['coverage']:.2f}. Sharpness is the variance of the Laplacian as a "
        "ratio to real digits: 1 is best; it takes noise for detail, so read it beside FD.",
        "",
        "![Samples of every variant](study-samples.png)",
        "",
    ]


def _verdicts(found: Results) -> dict[str, dict[str, tuple[str, str]]]:
    verdicts = {}
    for name, about in found.variants.items():
        seeds = found.seeds(name, about["against"]) if about["against"] else []
        if seeds:
            pairs = {m: [found.values(n, m, seeds=seeds) for n in (name, about["against"])] for m in MEASURES}
            verdicts[name] = {m: effect(*pair, m) for m, pair in pairs.items()}
    return verdicts


def _words(verdicts: dict) -> list[str]:
    """For each measure, the remedies that help it, that hurt it, and that do neither clearly. Where samples are sharper
    and further from the data, it may be noise that is sharp."""
    lines = []
    for measure, (title, complaint, _) in MEASURES.items():
        said = {"helps": [], "hurts": [], "unclear": []}
        for name, found in verdicts.items():
            verdict = found[measure][1]
            noise = measure == "sharpness_ratio" and verdict == "helps" and found["frechet_distance"][1] == "hurts"
            said.setdefault("sharper, and further from the data" if noise else verdict, []).append(name)
        said.pop("no change", None)
        words = ". ".join(f"{verdict}: {'; '.join(names) or 'none'}" for verdict, names in said.items())
        lines.append(f"- **{complaint}**, by {title}: {words}.")
    return lines


def _variants(found: Results) -> list[str]:
    head = ["variant", "parameters", "train, CPU s", *[m.title for m in MEASURES.values()], "NLL"]
    rows = []
    for name in found.variants:
        runs = [found.runs[name, s] for s in found.seeds(name)]
        nll = found.values(name, "nll")
        cells = [pages.spread(found.values(name, m)) for m in MEASURES]
        nll = "" if None in nll else pages.spread(nll, 4)
        seconds = [r["train_cpu_seconds"] for r in runs if "train_cpu_seconds" in r]
        seconds = f"{statistics.fmean(seconds):.0f}" if seconds else ""
        rows.append([name, f"{runs[0]['parameters']:,}", seconds, *cells, nll])
    return [
        *pages.table(head, rows),
        "",
        "NLL in nats per digit by 100 importance samples of 200 held-out digits; it compares within one likelihood "
        "alone (densities of an optimal sigma, probabilities of a logistic mixture).",
    ]


def _remedies(found: Results, verdicts: dict) -> list[str]:
    head = ["remedy", "against", *[f"{m.title} ({m.complaint})" for m in MEASURES.values()]]
    rows = []
    for name, cells in verdicts.items():
        said = [f"{change} {v if v in ('unclear', 'no change') else f'**{v}**'}" for change, v in cells.values()]
        rows.append([name, found.variants[name]["against"], *said])
    return [
        "Against the variant that differs in this one thing, seed by seed. *Unclear*: the seeds disagree, or the "
        "interval of their differences holds 0.",
        "",
        *pages.table(head, rows),
    ]


def _sampled(found: Results) -> list[str]:
    head = ["model", "sampler", *[MEASURES[m].title for m in _OF_SAMPLES]]
    rows = []
    for name in found.variants:
        for sampler in found.samplers(name):
            cells = [pages.spread(found.values(name, m, sampler)) for m in _OF_SAMPLES]
            rows.append([name, _SAMPLERS.get(sampler, sampler), *cells])
    return pages.table(head, rows)


def _expectations(found: Results) -> list[str]:
    """What the study was asked to show, and whether it does."""
    base, lines = "optimal sigma", []

    def say(what: str, holds: bool, got: str) -> None:
        lines.append(f"- {what}: {got}. **{'met' if holds else 'missed'}**")

    def means(name: str, other: str, measure: str, sampler: str = "normal") -> list[float]:
        seeds = found.seeds(name, other)
        both = (found.values(name, measure, sampler, seeds), found.values(other, measure, seeds=seeds))
        return [statistics.fmean(values) for values in both]

    def lower(name: str, other: str, sampler: str = "normal") -> float:
        after, before = means(name, other, "frechet_distance", sampler)
        return 100 * (1 - after / before)

    there = found.variants
    if base in there and "sigma = 1" in there:
        active, by = min(found.values(base, "active_units")), lower(base, "sigma = 1")
        what = "optimal sigma against sigma = 1: FD at least 35 % lower, all 16 units active"
        say(what, by >= 35 and active >= 16, f"{by:.0f} % lower, {active:.0f} of 16 active")
    if base in there and "residual" in there:
        by = lower("residual", base)
        say("residual against convolutions: FD at least 25 % lower", by >= 25, f"{by:.0f} % lower")
    if base in there and "+ GAN" in there:
        names = ("precision", "sharpness_ratio", "recall")
        after, before = zip(*[means("+ GAN", base, m) for m in names], strict=True)
        holds = after[0] > before[0] and after[1] > before[1] and after[2] >= before[2]
        got = ", ".join(f"{MEASURES[m].title} {b:.2f} → {a:.2f}" for m, b, a in zip(names, before, after, strict=True))
        say("+ GAN: precision and sharpness higher, recall not below", holds, got)
    if base in there and "gmm" in found.samplers(base):
        by = lower(base, base, "gmm")
        say(f"a mixture of 10 Gaussians against {_PRIOR}: FD at least 50 % lower", by >= 50, f"{by:.0f} % lower")
    if "recipe best" in there:
        distances = {(n, k): found.mean(n, "frechet_distance", k) for n in there for k in found.samplers(n)}
        name, sampler = first = min(distances, key=distances.get)
        got = f"the lowest FD is {distances[first]:.0f}, of {name} with {_SAMPLERS.get(sampler, sampler)}"
        say("the recipe wins the study", name == "recipe best", got)
        asked = ("frechet_distance", "coverage", "sharpness_ratio", "duplicate_rate")
        sampler = "own" if "own" in found.samplers("recipe best") else "gmm"
        fd, coverage, sharp, copies = (found.mean("recipe best", m, sampler) for m in asked)
        real = found.runs["recipe best", 0]["samplers"][sampler]["measures"]["duplicate_rate"]["training_images"]
        holds = fd <= 60 and coverage >= 0.65 and 0.8 <= sharp <= 1.1 and copies <= 1.5 * real
        got = f"FD {fd:.0f}, coverage {coverage:.2f}, sharpness {sharp:.2f}, duplicates {copies:.3f} with "
        got += _SAMPLERS.get(sampler, sampler)
        what = f"the recipe: FD <= 60, coverage >= 0.65, sharpness 0.8 … 1.1, duplicates <= 1.5 times real {real:.3f}"
        say(what, holds, got)
    return lines


def pictures(results: dict) -> dict[str, bytes]:
    from matplotlib.figure import Figure

    found = Results(results)
    names = [n for n in found.variants if (n, 0) in found.runs]
    figure = Figure(figsize=(11, 0.55 * len(names) + 0.4), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for ax, sampler in zip(row, ("normal", "gmm"), strict=True):
            pages.strip(ax, found.runs[name, 0]["samplers"][sampler]["images"], SHOWN * 28)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", size=8)
    axes[0][0].set_title(_PRIOR, size=9)
    axes[0][1].set_title("mixture of 10 Gaussians", size=9)
    sheets = {"study-samples.png": pages.png(figure)}

    figure = Figure(figsize=(8, 0.32 * len(names) + 1), layout="constrained")
    ax = figure.subplots()
    for offset, sampler, colour, label in ((-0.18, "normal", "#9a9a9a", _PRIOR), (0.18, "gmm", "#1b6ca8", "mixture")):
        at = [i + offset for i in range(len(names))]
        values = [found.values(n, "frechet_distance", sampler) for n in names]
        ax.barh(at, [statistics.fmean(v) for v in values], 0.34, color=colour, label=label)
        for y, each in zip(at, values, strict=True):
            ax.plot(each, [y] * len(each), "k.", markersize=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("FD-lite0 (lower is better); dots are seeds")
    ax.legend()
    ax.grid(axis="x", alpha=0.3)
    return sheets | {"study-distances.png": pages.png(figure)}
