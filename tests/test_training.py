"""Data, models, the loop, checkpoints that survive a kill, and the run that puts them together."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vaefast import checkpoint, sampling
from vaefast.data import Batches, digits
from vaefast.distributions import DiagonalGaussian
from vaefast.models import VAE, dense_vae
from vaefast.objectives import elbo
from vaefast.runs import Run
from vaefast.training import (
    NotFiniteError,
    Settings,
    SettingsError,
    Trainer,
    job,
    load,
    pictures,
    run,
    state,
)
from vaefast.training.build import rate
from vaefast.training.recipes import RECIPES
from vaefast.training.settings import options


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(autouse=True)
def threads_and_generator():
    """Runs set both for their process."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


# data


def test_digits_are_split_by_class(data):
    assert data.train.shape == (4500, 1, 28, 28)
    assert data.test.shape == (500, 1, 28, 28)
    assert data.train.dtype == data.test.dtype == torch.uint8
    assert data.train_labels.bincount().tolist() == [450] * 10
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.train.max() == 255
    seen = {bytes(image.numpy().tobytes()) for image in data.train}
    assert not any(image.numpy().tobytes() in seen for image in data.test)


def test_batches_show_every_row_once():
    rows = torch.arange(10)
    assert [len(b) for b in Batches(rows, 4)] == [4, 4, 2]
    assert torch.equal(torch.cat(list(Batches(rows, 4))), rows)
    batches = Batches(rows, 3, shuffle=True)
    torch.manual_seed(0)
    first, second = torch.cat(list(batches)), torch.cat(list(batches))
    torch.manual_seed(0)
    assert len(batches) == 4
    assert torch.equal(first.sort().values, rows)
    assert not torch.equal(first, rows)
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(batches)), first)


@pytest.mark.parametrize(("rows", "size", "message"), [(3, 0, "size must be"), (0, 2, "at least one sample")])
def test_batches_refuse(rows, size, message):
    with pytest.raises(ValueError, match=message):
        Batches(torch.zeros(rows), size)


# models


def linear_sizes(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_dense_vae_has_the_introductory_shape():
    model = dense_vae((1, 28, 28), 6)
    assert linear_sizes(model.encoder) == [(784, 128), (128, 64), (64, 32), (32, 2 * 6)]
    assert linear_sizes(model.decoder) == [(6, 32), (32, 64), (64, 128), (128, 256), (256, 784)]


def test_heads_are_separate():
    model = dense_vae((4,), 2)
    before = model.encode(torch.ones(1, 4))
    with torch.no_grad():
        model.encoder.heads.bias[2:] += 1
    after = model.encode(torch.ones(1, 4))
    assert torch.equal(after.mean, before.mean)
    torch.testing.assert_close(after.logvar, before.logvar + 1)


def test_dense_vae_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of 'relu'"):
        dense_vae((4,), 2, activation="sine")


def test_vae_takes_any_encoder_and_decoder():
    encoder = nn.Conv2d(1, 4, 4, stride=4)  # two latent channels
    decoder = nn.ConvTranspose2d(2, 1, 4, stride=4)
    model = VAE(encoder, decoder, (2, 2, 2))
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    output = model(x, seed=1)
    assert output.decoded.shape == x.shape
    assert output.z.shape == (3, 2, 2, 2)
    posterior = model.encode(x)
    assert isinstance(posterior, DiagonalGaussian)
    torch.testing.assert_close(output.kl, posterior.kl())
    assert torch.equal(output.z, posterior.rsample(seed=1))
    torch.testing.assert_close(posterior.parameters, encoder(x / 255))
    assert torch.equal(model.reconstruct(x), torch.sigmoid(decoder(posterior.mean)))
    assert torch.equal(model.sample(5, seed=2), model.sample(5, seed=2))
    assert not torch.equal(model.sample(5, seed=2), model.sample(5, seed=3))
    assert model.sample(5).shape == (5, 1, 8, 8)


def test_elbo_in_float64():
    model, x = dense_vae((7,), 3).double(), torch.rand(5, 7).double()
    torch.manual_seed(4)
    parts = elbo(model, x)
    torch.manual_seed(4)
    z = model.encode(x).sample()
    mean, logvar = model.encoder(x).chunk(2, 1)
    p = torch.sigmoid(model.decoder(z))
    reconstruction = -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
    torch.testing.assert_close(parts["reconstruction"], reconstruction)
    torch.testing.assert_close(parts["kl"], kl)
    torch.testing.assert_close(parts["loss"], reconstruction + kl)


# the loop


def squares(model, batch):
    errors = (model(batch[:, :2])[:, 0] - batch[:, 2]) ** 2
    return {"loss": errors, "largest": errors.detach()}


def plane(count: int) -> torch.Tensor:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, x @ torch.tensor([[2.0], [-1.0]]) + 3], 1)


def test_trainer_takes_any_module_and_objective():
    torch.manual_seed(0)
    model, steps, rows = nn.Linear(2, 1), [], []
    trainer = Trainer(model, squares, torch.optim.SGD(model.parameters(), lr=0.1))
    train = Batches(plane(70), 16, shuffle=True)
    trainer.fit(train, Batches(plane(30), 16), epochs=8, on_step=lambda: steps.append(1), on_epoch=rows.append)
    assert len(steps) == 8 * 5
    assert rows == trainer.history
    assert rows[-1]["held-out"]["loss"] < 1e-3 * rows[0]["train"]["loss"]
    torch.testing.assert_close(model.weight, torch.tensor([[2.0, -1.0]]), atol=0.1, rtol=0)
    assert not model.training  # evaluated last
    trainer.fit(train, epochs=1)
    assert set(trainer.history[-1]) == {"train"}
    assert model.training


def test_means_are_over_samples_not_batches():
    model, data = nn.Linear(2, 1), plane(50)
    trainer = Trainer(model, squares, torch.optim.SGD(model.parameters(), lr=0.1))
    uneven = trainer.evaluate(Batches(data, 49))  # a last batch of one
    with torch.no_grad():
        expected = squares(model, data)["loss"].double().mean().item()
    assert uneven == pytest.approx({"loss": expected, "largest": expected}, rel=1e-6)


def test_evaluate_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    trainer = Trainer(model, squares, torch.optim.SGD(model.parameters(), lr=0.1))
    assert trainer.evaluate(Batches(plane(8), 8)) == trainer.evaluate(Batches(plane(8), 8))
    assert model[0].weight.grad is None


def test_schedule_steps_with_the_optimizer():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    Trainer(model, squares, optimizer, schedule).fit(Batches(plane(9), 3), epochs=2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_loss_that_is_not_finite_ends_the_training():
    model = nn.Linear(2, 1)
    trainer = Trainer(model, squares, torch.optim.SGD(model.parameters(), lr=1e20))
    with pytest.raises(NotFiniteError, match=r"the loss became (inf|nan) in epoch 1"):
        trainer.fit(Batches(plane(64), 8), epochs=3)
    assert trainer.history == []


# checkpoints


def test_checkpoint_holds_every_bit(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    checkpoint.save(tmp_path / "c.safetensors", model, {"note": "é"})
    tensors, metadata = checkpoint.read(tmp_path / "c.safetensors")
    assert metadata == {"note": "é"}
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert os.listdir(tmp_path) == ["c.safetensors"]


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_kill_leaves_the_old_checkpoint(tmp_path, moment):
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, b"old")
    script = f"""
import os, signal
from vaefast import checkpoint
{moment} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write({str(path)!r}, b"new" * 100_000)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    checkpoint.write(path, b"newer")  # what the killed process left does not get in the way
    assert path.read_bytes() == b"newer"


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    (tmp_path / "plain").write_text("")
    checkpoint.write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, nn.Linear(30, 30))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        checkpoint.read(path)


# pictures


def open_png(content: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_every_image_in_its_place(channels):
    images = torch.rand(5, channels, 4, 6)
    pixels = open_png(pictures.grid(images, columns=3))
    assert pixels.shape == (2 * (2 + 2 * (4 + 2)), 2 * (2 + 3 * (6 + 2)), 3)
    small = pixels[::2, ::2]
    for i, image in enumerate(images):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 8
        expected = (image * 255).round().to(torch.uint8).expand(3, 4, 6).movedim(0, -1)
        assert torch.equal(small[top : top + 4, left : left + 6], expected)
    assert (small[8:, 18:] == 255).all()  # no sixth image


def test_reconstructions_alternate():
    originals = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    pixels = open_png(pictures.reconstructions(originals, torch.full((4, 1, 2, 2), 0.2), columns=2))[::2, ::2]
    assert [pixels[2 + 4 * row, 2, 0].item() for row in range(4)] == [0, 51, 0, 51]


def test_curves_are_a_picture():
    row = {"train": {"loss": 2.0, "kl": 1.0}, "held-out": {"loss": 3.0, "kl": 1.5}}
    assert open_png(pictures.curves([row, row])).float().std() > 0


# the run


def small(folder, **changes) -> Settings:
    return Settings(**{"output": str(folder), "epochs": 2, "batch_size": 500, "latent": 3, **changes})


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(small(folder, epochs=3), silent)


def test_the_loss_falls(finished):
    folder, metrics = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    losses = [row["train"]["loss"] for row in metrics["history"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]
    for split in ("train", "held-out"):
        parts = metrics[split]
        assert parts["elbo"] == pytest.approx(-parts["reconstruction"] - parts["kl"])
        assert math.isfinite(parts["elbo"])


def test_a_reloaded_model_draws_the_same_pictures(finished, data):
    folder, metrics = finished
    torch.set_num_threads(1)
    model = load(folder)
    shown = data.test[::10]
    with torch.no_grad():
        drawn = pictures.reconstructions(shown, model.reconstruct(shown), 10)
        samples = pictures.grid(model.sample(100, seed=0), 10)
        held_out = torch.stack([elbo(model, data.test)["loss"].mean() for _ in range(5)]).mean().item()
    assert drawn == (folder / "reconstructions.png").read_bytes()
    assert samples == (folder / "samples.png").read_bytes()
    assert held_out == pytest.approx(-metrics["held-out"]["elbo"], rel=0.01)


def test_one_seed_one_result(finished, tmp_path):
    folder, _ = finished
    run(small(tmp_path / "same", epochs=3), silent)
    run(small(tmp_path / "other", epochs=3, seed=1), silent)
    weights, same, other = (
        checkpoint.read(f / "checkpoint.safetensors")[0] for f in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not any(torch.equal(weights[name], other[name]) for name in weights if name.endswith("weight"))


def test_an_interrupt_in_the_first_epoch_leaves_the_earlier_run(finished, monkeypatch):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(job, "_fit", lambda run: True)
    said = []
    with pytest.raises(KeyboardInterrupt):
        run(small(folder, latent=5), said.append)
    assert said[-1] == "Interrupted before the first epoch was finished: nothing was saved."
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_load_without_a_run(tmp_path):
    with pytest.raises(OSError, match="checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be from 1 to 1000000, got 0"),
        ({"batch_size": -1}, "batch size must be"),
        ({"seed": 2**63}, "seed must be"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
        ({"clip": 0.0}, "clip must be a positive number, got 0.0"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight decay must be a number from 0 up, got -1.0"),
        ({"early_stop": 0}, "early stop must be from 1"),
        ({"amp": "fp8"}, "amp must be one of none, bf16, fp16, got 'fp8'"),
        ({"schedule": "sine"}, "schedule must be one of cosine, linear, constant, got 'sine'"),
        ({"recipe": "worst"}, "recipe must be one of default, best, got 'worst'"),
        ({"model_options": "gelu"}, "model options must be \"name=value name=value\", got 'gelu'"),
    ],
)
def test_settings_outside_their_range(changes, message):
    with pytest.raises(SettingsError, match=message):
        Settings(**changes)


def test_options_are_values_of_json_or_words():
    text = 'encoder_hidden=[64, 32]  likelihood_options={"logvar": 0.5} key="a b" '
    text += "name=gelu size=3x  on=true empty= last=-1 "
    expected = {"encoder_hidden": [64, 32], "likelihood_options": {"logvar": 0.5}, "key": "a b", "name": "gelu"}
    expected |= {"size": "3x", "on": True, "empty": "", "last": -1}
    assert options(Settings(model_options=text), "model_options") == expected
    for wrong, part in (("a=1 gelu b=2", "gelu"), ("=4", "=4"), ("a=[1] ]", "]"), ("a=[1, 2", "2")):
        with pytest.raises(SettingsError, match=f"got {re.escape(repr(part))}"):
            Settings(data_options=wrong)


@pytest.fixture(scope="module")
def few(data, tmp_path_factory) -> dict:
    """The settings of a run on 900 digits, in a file that is read faster than all of them."""
    path = tmp_path_factory.mktemp("few") / "digits.npz"
    np.savez(path, x_train=data.train[::5].numpy(), x_test=data.test[::5].numpy())
    return {"data": str(path), "batch_size": 100}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "diffusion"}, "model must be one of dense.*, got 'diffusion'"),
        ({"sampler": "dice"}, "sampler must be one of prior, normal, gmm.*, got 'dice'"),
        ({"sampler": "gmm", "sampler_options": "colour=3"}, "sampler 'gmm': .*colour"),
        ({"sampler": "gmm", "sampler_options": "components=1000"}, "at most the number of samples 900, got 1000"),
        ({"sampler": "flow", "latent": 1}, "sampler 'flow': latent_shape must hold at least 2 numbers"),
        ({"sampler": "normal", "model": "ladder"}, "sampler 'normal': a hierarchical model's z is not N"),
        ({"objective": "luck"}, "objective must be one of elbo.*, got 'luck'"),
        (
            {"model_options": "activate=gelu"},
            "model 'dense': unknown option activate; did you mean activation.? there are likelihood, .*, activation",
        ),
        ({"model_options": "encoder_hidden=[8] bounded=no"}, "model 'dense': bounded must be true or false, got 'no'"),
        (
            {"model_options": 'likelihood_options={"valid":1}'},
            "model 'dense': Bernoulli: unknown option valid; did you mean validate",
        ),
        (
            {"objective_options": "betta=4"},
            "^objective 'elbo': unknown option betta; did you mean beta.? there are beta, free_bits, per_channel",
        ),
        ({"objective_options": "beta=four"}, "objective 'elbo': beta must be a number, got 'four'"),
        ({"data_options": "keys=x"}, r"digits\.npz': unknown option keys; did you mean key.? there are key, held_out"),
        ({"model_options": "activation=sine"}, "model 'dense': activation must be one of"),
        ({"data": "digits", "data_options": "every=1"}, "every must be an int from 2 to 500, got 1"),
        # what is said only when a batch comes
        ({"model": "conv", "model_options": "width=-1"}, "model 'conv': "),
        ({"model": "conv", "model_options": "width=0"}, "^model 'conv' with the objective 'elbo': "),
        ({"objective": "info_vae", "objective_options": "kernel=box"}, "'info_vae': kernel must be 'imq' or 'rbf'"),
        ({"objective": "beta_tcvae", "model": "ladder"}, "must have a model whose posterior is a single Gaussian"),
        ({"prior": "flow", "objective_options": "free_bits=1"}, "free_bits are of the divergence to N"),
        ({"prior": "mixture", "model_options": 'prior_options={"components":0}'}, "at least one component"),
        ({"objective": "ciwae", "objective_options": "samples=2 beta=7"}, "beta must be from 0 to 1, got 7"),
        ({"data": "nowhere"}, "there is no data 'nowhere'"),
        ({"anneal": "beta=linear:many"}, "anneal must be name=kind:steps.*, got beta=linear:many"),
        ({"anneal": "alpha=linear:10"}, "annealers must name numbers of the objective, which has no 'alpha'"),
        ({"cuda_graph": True, "device": "cpu"}, "cuda_graph needs a model on a CUDA device"),
    ],
)
def test_settings_that_cannot_be_honoured(changes, message, few, tmp_path):
    with pytest.raises(SettingsError, match=message):
        run(small(tmp_path, **{**few, **changes}), silent)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("likelihood", "words"), [("bernoulli", r"x must be in \[0, 1\]"), ("poisson", "x must be .*"), ("gaussian", None)]
)
def test_data_that_the_likelihood_cannot_have_made(likelihood, words, tmp_path):
    np.save(tmp_path / "far.npy", 5 * np.random.default_rng(0).standard_normal((60, 7), np.float32))
    settings = small(tmp_path / "run", data=str(tmp_path / "far.npy"), likelihood=likelihood)
    if words is None:
        run(settings, silent)
    else:
        with pytest.raises(SettingsError, match=f"model 'dense' with the objective 'elbo': {words}.*min -1"):
            run(settings, silent)


def test_every_setting_says_what_it_is():
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"]
        assert field.metadata["metavar"] or field.type == "bool"
    with pytest.raises(TypeError, match="there is no setting 'epoch'; there are output, recipe, data"):
        Settings(epoch=3)


def test_a_recipe_is_where_settings_begin():
    best = Settings(recipe="best")
    for name, value in RECIPES["best"].items():
        assert getattr(best, name) == value
    mine = Settings(recipe="best", latent=Settings().latent)
    assert mine.latent == Settings().latent != RECIPES["best"]["latent"]
    assert mine.model == RECIPES["best"]["model"]
    assert mine.given == {"recipe", "latent"}
    assert dataclasses.replace(mine, epochs=3).latent == mine.latent


def test_a_run_draws_from_its_sampler(few, tmp_path):
    """In samples.png, and afterwards where nothing else is asked for; the weights do not depend on it."""
    opened = {}
    told = {"components": 3, "on": "sample"}
    for name in ("prior", "gmm"):
        text = " ".join(f"{key}={value}" for key, value in told.items())
        run(small(tmp_path / name, **few, sampler=name, sampler_options=text), silent)
        opened[name] = Run(tmp_path / name)
    assert torch.equal(*(next(each.model.parameters()) for each in opened.values()))
    for name, each in opened.items():
        model, samples = each.model, each.samples(100)
        fitted = sampling.fitted(name, model, each.data.train, seed=0, **told)
        torch.testing.assert_close(samples, model.sample(100, seed=0, sampler=fitted).detach(), rtol=0, atol=0)
        assert (tmp_path / name / "samples.png").read_bytes() == pictures.grid(samples, 10)
    assert not torch.allclose(opened["prior"].samples(4), opened["gmm"].samples(4))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 5),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
    ],
)
def test_learning_rates(schedule, expected):
    assert [rate(Settings(schedule=schedule), step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-12)
    warm = Settings(schedule=schedule, warmup=3)
    found = [rate(warm, step, 7) for step in range(8)]
    assert found == pytest.approx([0.25, 0.5, 0.75, *expected], abs=1e-12)


def test_what_is_saved_is_the_average_of_the_weights(few, tmp_path):
    metrics = run(small(tmp_path, **few, schedule="constant", ema=0.99), silent)
    trained = state.read(tmp_path / job.STATE)[0]["trainer"]
    saved, _ = checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert saved.keys() == trained["ema"]["average"].keys()
    for name, value in saved.items():
        assert torch.equal(value, trained["ema"]["average"][name])
        assert not torch.equal(value, trained["model"][name])
    assert [row["lr"] for row in metrics["progress"]] == [1e-3] * 2


def test_early_stop_saves_the_best_epoch(few, tmp_path):
    metrics = run(small(tmp_path, **few, epochs=60, lr=0.05, schedule="constant", early_stop=1), silent)
    losses = [row["held-out"]["loss"] for row in metrics["history"]]
    assert len(losses) < 60
    assert min(losses) == losses[-2] < losses[-1]
    assert metrics["held-out"]["loss"] == pytest.approx(losses[-2], rel=0.01)  # other noise


@pytest.mark.parametrize("objective", ["info_vae", "wae_mmd", "beta_tcvae"])
def test_a_last_batch_of_one_and_more_held_out_than_trained_on(objective, tmp_path):
    x = np.random.default_rng(0).random((2, 30, 5), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x_train=x[0, :9], x_test=x[1])
    settings = small(tmp_path / "run", data=str(tmp_path / "data.npz"), batch_size=4, objective=objective)
    found = run(settings, silent)
    assert found["skipped_steps"] == 0
    assert math.isfinite(found["held-out"]["loss"])


def test_data_that_is_no_image(tmp_path):
    counts = np.random.default_rng(0).random((40, 7)).astype(np.float32)
    np.save(tmp_path / "a.npy", counts)
    said = []
    metrics = run(small(tmp_path / "run", data=str(tmp_path / "a.npy"), batch_size=8), said.append)
    assert metrics["steps"] == 2 * 5
    assert "on 36 samples" in said[0]
    assert sorted(os.listdir(tmp_path / "run")) == sorted(set(job.FILES) - {"samples.png", "reconstructions.png"})


def test_a_broken_image_among_the_data(tmp_path):
    for i in range(10):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:50])
    with pytest.raises(SettingsError, match=r"cannot read the image .*7\.png"):
        run(small(tmp_path / "run", data=str(tmp_path)), silent)


def test_curves_for_tensorboard(few, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = run(small(tmp_path, **few, tensorboard=True), silent)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for split in ("train", "held-out"):
        for name, value in metrics["history"][-1][split].items():
            last = events.Scalars(f"{split}/{name}")[-1]
            assert last.step == metrics["steps"]
            assert last.value == pytest.approx(value, rel=1e-6)
    assert events.Scalars("progress/active_units")[-1].value == metrics["active_units"]


def test_tensorboard_where_it_is_not_installed(few, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match="tensorboard needs a package that is not here: pip install tensorboard"):
        run(small(tmp_path, **few, tensorboard=True), silent)
