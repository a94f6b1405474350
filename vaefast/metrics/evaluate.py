"""All measures of a model at once, or of a set of images, and the table of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from vaefast._modes import evaluating
from vaefast.data import spread
from vaefast.info import versions
from vaefast.metrics import (
    collapse,
    estimate,
    features,
    frechet,
    likelihood,
    lpips,
    manifold,
    memorisation,
    repetition,
    sharpness,
)
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.images import as_images, levels
from vaefast.metrics.reference import Reference

_SAMPLED = 250  # images decoded at a time
_ENCODED = 5000  # held-out images whose posteriors are looked at


class Row(NamedTuple):
    """label: in tables, with {} for the extractor's name; direction: "lower", "higher", "real" for as near to what
    real images get as can be, "none" for neither; complaint: what it is a measure of."""

    label: str
    direction: str
    complaint: str


ROWS = {
    "frechet_distance": Row("FD-{}", "lower", "inconsistency"),
    "kernel_distance": Row("KD-{}", "lower", "inconsistency"),
    "precision": Row("precision", "higher", "inconsistency"),
    "density": Row("density", "higher", "inconsistency"),
    "recall": Row("recall", "higher", "repetition"),
    "coverage": Row("coverage", "higher", "repetition"),
    "duplicate_rate": Row("duplicate rate", "real", "repetition"),
    "vendi_score": Row("Vendi score", "real", "repetition"),
    "lpips_diversity": Row("ST-LPIPS diversity", "real", "repetition"),
    "sharpness_ratio": Row("sharpness ratio", "real", "blur"),
    "authenticity": Row("authenticity", "real", "memorisation"),
    "active_units": Row("active units", "higher", "collapse"),
    "dimension_kl": Row("KL to N(0, 1) per dimension (nats)", "none", "collapse"),
    "mutual_information": Row("mutual information (nats)", "higher", "collapse"),
    "nll": Row("NLL (nats)", "lower", "likelihood"),
    "bits_per_dimension": Row("bits per dimension", "lower", "likelihood"),
}
"""Every measure that `evaluate` gives, in the order of the table."""


def compare(
    samples,
    real,
    train=None,
    *,
    extractor: features.Extractor | str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, dict]:
    """The measures of a set of images, without a model: entries as those of `evaluate`, those of ROWS that apply.

    Where samples and real images are not equally many, measures that must see as many of each see rows of the larger
    set spread evenly over it.

    Args:
        samples, real: images as for `as_images`; real ones that the model was not trained on.
        train: those that it was trained on, for authenticity and for what is attainable.
        extractor: a callable with a `name`, a name of `features.NAMES`, or None for "lite0".
        seed: of the pairs of LPIPS.
        device: of the networks.
        progress: whether to show bars.
    """
    samples, real, device = as_images(samples), as_images(real), str(device)
    extractor = features.resolve(extractor, device)
    bar = (lambda what: what) if progress else (lambda what: None)
    reference = features.reference_features(real, extractor, progress=bar("features of real images"))
    trained = None
    if train is not None:
        trained = features.reference_features(train, extractor, progress=bar("features of training images"))
    fake = Reference(features.extract(samples, extractor, progress=bar("features of samples")))
    found = _of_features(reference, fake)
    if trained is not None:
        found["authenticity"] = memorisation.authenticity(trained, fake)
    named = {"extractor": extractor.name, "extractor_version": getattr(extractor, "version", None)}
    counts = {"samples": len(fake), "real": len(reference)}
    entries = {name: entry(name, value, **named, **counts) for name, value in found.items()}
    for name, value in _of_images(real, samples, seed, device).items():
        facts = {"extractor_version": lpips.version()} if name == "lpips_diversity" else {}
        entries[name] = entry(name, value, **facts, **counts)
    if not lpips.available():
        entries["lpips_diversity"] = absent("lpips_diversity", f"{lpips.PACKAGE} is not installed")
    if trained is not None:
        for name, value in _attainable(reference, trained, real, as_images(train), len(fake), device).items():
            entries[name]["training_images"] = value
    return {name: entries[name] for name in ROWS if name in entries}


def _of_features(reference: Reference, fake: Reference) -> dict[str, Estimate]:
    count = min(len(reference), len(fake))
    equal = [r if len(r) == count else Reference(spread(r.features, count)) for r in (reference, fake)]
    return {
        "frechet_distance": frechet.frechet_distance(reference, fake),
        "kernel_distance": frechet.kernel_distance(reference, fake),
        **manifold.prdc(*equal),
        "duplicate_rate": repetition.duplicate_rate(*equal),
        "vendi_score": repetition.vendi_score(equal[1]),
    }


def _of_images(real, samples, seed: int, device: str) -> dict[str, Estimate]:
    variances = map(sharpness.laplacian_variance, (real, samples))
    found = {"sharpness_ratio": sharpness.sharpness_ratio(*variances)}
    if lpips.available():
        found["lpips_diversity"] = lpips.lpips_diversity(samples, pairs=lpips.PAIRS, seed=seed, device=device)
    return found


_attained: dict[tuple, dict[str, float]] = {}


def _attainable(reference: Reference, trained: Reference, real, train, count: int, device: str) -> dict[str, float]:
    """What training images get as samples, and held-out ones as samples in authenticity; once for each pair of sets."""
    key = reference, trained, count, device
    if key not in _attained:
        if len(_attained) >= 16:
            _attained.clear()
        found = _of_features(reference, Reference(spread(trained.features, count)))
        found |= _of_images(real, spread(train, count), 0, device)
        found["authenticity"] = memorisation.authenticity(trained, reference)
        _attained[key] = {name: estimate.value for name, estimate in found.items()}
    return _attained[key]


def entry(name: str, estimate: Estimate, **facts) -> dict:
    """A result as `evaluate` gives it: value, low, high, label, complaint, direction, `facts`, and versions."""
    row = ROWS[name]
    about = {"label": row.label.format(facts.get("extractor")), "complaint": row.complaint, "direction": row.direction}
    known = versions()
    return estimate._asdict() | about | facts | {"versions": {key: known[key] for key in ("vaefast", "torch")}}


def absent(name: str, reason: object) -> dict:
    """The entry of a measure that could not be taken: value None, and why_not."""
    return entry(name, Estimate(None, None, None)) | {"why_not": str(reason)}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    train: torch.Tensor,
    test: torch.Tensor,
    *,
    samples: int = 2500,
    extractor: features.Extractor | str | None = None,
    sampler=None,
    seed: int = 0,
    progress: bool = True,
    importance_samples: int = likelihood.SAMPLES,
    likelihood_images: int = 250,
) -> dict[str, dict]:
    """Every measure of ROWS, of a model that saw `train` and did not see `test`.

    Samples are rounded to uint8, as data is stored. The real images are `test`, at most `samples` of them, spread
    evenly over its rows; their features, and those of `train`, are kept in memory, so that the next model of a study
    costs its own samples only. The model is in eval mode meanwhile; the global random state is not touched.

    Args:
        model: with sample, encode, log_likelihood, likelihood, and latent_shape, as `vaefast.models` have.
        train, test: images [N, C, H, W], uint8 or in [0, 1].
        samples: how many to draw.
        extractor: as for `compare`.
        sampler: a fitted one of `vaefast.sampling`, in place of the model's prior.
        seed: of the samples and of every other draw.
        importance_samples: K of the likelihood; 0 leaves it out.
        likelihood_images: how many test images it is averaged over.

    Returns:
        name -> {"value", "low", "high": its 95 % interval, "direction", "label", "complaint", "versions", and, where it
        depends on them, "extractor", "extractor_version", "samples", "real", "training_images": what as many training
        images get in place of the samples (held-out ones for authenticity)}, as JSON can hold it. dimension_kl has
        "dimensions", a list, and active_units their number; mutual_information its "limit", log N; the likelihoods
        "importance_samples" and whether it is a "density". What the model cannot be asked has value None and "why_not".

    Raises:
        ValueError: for a model whose samples are NaN.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        real = spread(test, samples)
        drawn = draw(model, samples, sampler=sampler, seed=seed)
        entries = compare(drawn, real, train, extractor=extractor, seed=seed, device=device, progress=progress)
        entries |= _latents(model, spread(test, _ENCODED), seed)
        entries |= _likelihood(model, spread(test, likelihood_images), importance_samples, seed)
    return {name: entries[name] | {"seed": seed} for name in ROWS}


def _latents(model: nn.Module, x: torch.Tensor, seed: int) -> dict[str, dict]:
    names = "active_units", "dimension_kl", "mutual_information"
    try:
        mean, logvar = collapse.posteriors(model, x)
    except TypeError as error:
        return {name: absent(name, error) for name in names}
    kl = collapse.dimension_kl(mean, logvar)
    found = (
        (collapse.active_units(mean), {"dimensions": mean.shape[1]}),
        (estimate.mean(collapse.elementwise_kl(mean, logvar).mean(1)), {"dimensions": [each.value for each in kl]}),
        (collapse.mutual_information(mean, logvar, seed=seed), {"limit": math.log(len(x))}),
    )
    return {name: entry(name, value, real=len(x), **facts) for name, (value, facts) in zip(names, found, strict=True)}


def _likelihood(model: nn.Module, x: torch.Tensor, samples: int, seed: int) -> dict[str, dict]:
    names = "nll", "bits_per_dimension"
    if not samples or not hasattr(model, "log_likelihood"):
        why_not = "not asked for" if not samples else f"{type(model).__name__} has no log_likelihood"
        return {name: absent(name, why_not) for name in names}
    nll = likelihood.importance_nll(model, x, samples, seed=seed)
    levels = likelihood.density_levels(model.likelihood)
    bits = likelihood.bits_per_dimension(nll, x[0].numel(), levels=levels)
    facts = {"real": len(x), "importance_samples": samples, "density": levels is not None}
    return {name: entry(name, value, **facts) for name, value in zip(names, (nll, bits), strict=True)}


@torch.no_grad()
def draw(model: nn.Module, count: int, *, sampler=None, seed: int = 0) -> torch.Tensor:
    """`count` samples of the model, uint8 on the CPU, a few at a time; the same for the same seed."""
    options = {} if sampler is None else {"sampler": sampler}
    sizes = [min(_SAMPLED, count - start) for start in range(0, count, _SAMPLED)]
    parts = (model.sample(size, seed=seed * 2**20 + i, **options) for i, size in enumerate(sizes))
    return torch.cat([levels(part).cpu() for part in parts])


def table(results: dict[str, dict]) -> str:
    """What `evaluate` or `compare` gave, as Markdown: a row for each measure, with its interval."""
    lines = ["| complaint | measure | value | 95 % interval | training images | better |", "|---|---|---|---|---|---|"]
    for result in results.values():
        shown = result.get("training_images")
        interval = "" if result["value"] is None else f"{number(result['low'])} … {number(result['high'])}"
        value = result.get("why_not") or number(result["value"])
        attained = "" if shown is None else number(shown)
        better = {"real": "as real", "none": ""}.get(result["direction"], result["direction"])
        lines.append(f"| {result['complaint']} | {result['label']} | {value} | {interval} | {attained} | {better} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """To three digits, without an exponent where it is large."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
