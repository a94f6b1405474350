"""Model folders in the Hugging Face layout."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from vaefast import models
from vaefast.models import VAE
from vaefast.models.pretrained import CARD, CONFIG, WEIGHTS

DENSE = {"data_shape": [1, 4, 4], "latent": 2, "encoder_hidden": [8], "decoder_hidden": [8], "activation": "gelu"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a dense model."""
    models.create("dense", **DENSE).save_pretrained(tmp_path / "model", "Made of nothing.")
    return tmp_path / "model"


@pytest.mark.parametrize("name", models.NAMES)
def test_every_model_comes_back_as_it_was(name, tmp_path):
    torch.manual_seed(0)
    model = models.create(name, data_shape=(1, 32, 32), latent=4).eval()
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(str(tmp_path))
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert torch.equal(again.sample(2, seed=3), model.sample(2, seed=3))


def test_an_option_that_is_no_default_comes_back(folder):
    again = VAE.from_pretrained(folder)
    assert again.config["name"] == "dense"
    assert {name: again.config[name] for name in DENSE} == DENSE
    assert isinstance(again.encoder.hidden[2], torch.nn.GELU)


def test_numbers_of_every_kind_come_back_as_numbers(tmp_path):
    options = {"likelihood": "gaussian", "likelihood_options": {"logvar": torch.tensor(-1.0)}}
    model = models.create("dense", data_shape=(1, 4, 4), latent=np.int64(2), **options)
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    expected = {"data_shape": [1, 4, 4], "latent": 2, "likelihood_options": {"logvar": -1.0}}
    assert again.config.items() >= expected.items()
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(again.log_likelihood(x, 2, seed=0), model.log_likelihood(x, 2, seed=0))


@pytest.mark.parametrize("start", [torch.tensor([0.0, 1.0, -1.0]), torch.tensor(0.5)])
def test_what_is_learned_comes_back_as_learned(tmp_path, start):
    options = {
        "likelihood": "negative_binomial",
        "likelihood_options": {"log_theta": torch.nn.Parameter(start.clone())},
    }
    model = models.create("dense", data_shape=(3,), latent=2, **options)
    with torch.no_grad():
        model.likelihood.log_theta += 1
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert isinstance(again.likelihood.log_theta, torch.nn.Parameter)
    assert torch.equal(again.likelihood.log_theta, start + 1)
    again.likelihood(again(torch.ones(2, 3)).decoded, torch.ones(2, 3)).sum().backward()
    assert again.likelihood.log_theta.grad is not None


def test_a_configuration_that_json_cannot_hold_is_refused_before_a_file_is_written(folder):
    model = models.create("dense", **DENSE)
    model.config["latent"] = object()
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="config holds what JSON cannot: Object of type object"):
        model.save_pretrained(folder)
    assert (folder / WEIGHTS).read_bytes() == before


def test_the_layout_and_the_card(folder):
    assert sorted(file.name for file in folder.iterdir()) == sorted([CARD, CONFIG, WEIGHTS])
    card = (folder / CARD).read_text()
    assert "Made of nothing." in card
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(folder / CARD).data
    assert data.library_name == "vaefast"
    assert "vae" in data.tags


def test_the_example_of_the_card_runs(folder):
    code = (folder / CARD).read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    names = {}
    exec(code, names)
    assert names["images"].shape == (16, 1, 4, 4)


def test_a_model_made_by_hand_is_refused(tmp_path):
    model = VAE(torch.nn.Identity(), torch.nn.Identity(), (2,))
    with pytest.raises(ValueError, match=r"no config; only a model of models\.create"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        VAE.from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; huggingface_hub\.snapshot"):
        VAE.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"model": {"latent": 2}}', 'no "model" with a "name"'),
        (json.dumps({"model": {"name": "dance", **DENSE}}), "describes no model: model must be one of .* got 'dance'"),
        (json.dumps({"model": {"name": "dense", "depth": 3, **DENSE}}), "describes no model: .*depth"),
        (json.dumps({"model": {"name": "dense", **DENSE, "latent": 3}}), "does not fit .*size mismatch"),
    ],
)
def test_a_configuration_that_is_wrong(content, message, folder):
    (folder / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=message):
        VAE.from_pretrained(folder)


def test_weights_that_are_cut_off(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            VAE.from_pretrained(folder)


def test_a_pickle_in_the_place_of_weights_is_not_executed(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        VAE.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()
