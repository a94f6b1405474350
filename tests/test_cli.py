"""The command as people run it. What needs no process of its own calls `main`, for each costs seconds of imports."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vaefast
from vaefast import checkpoint, metrics, models
from vaefast.cli import main
from vaefast.commands import bench
from vaefast.commands.inputs import CommandError
from vaefast.commands.train import read
from vaefast.ops._define import TABLE
from vaefast.training import Settings, load, run
from vaefast.training.job import FILES
from vaefast.training.settings import options

VAEFAST = [sys.executable, "-m", "vaefast"]
SMALL = ["--epochs", "2", "--batch-size", "500", "--latent", "3"]


def execute(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture
def call(capsys):
    """Run `vaefast` in this process."""

    def call(*arguments: object) -> subprocess.CompletedProcess:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as caught:
            code = caught.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


def assert_one_line_error(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("vaefast: error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(Settings(output=str(folder), epochs=2, batch_size=500, latent=3), lambda line: None)
    return folder


# --- train ---


def test_data_that_a_likelihood_cannot_have_made_in_a_later_batch(call, tmp_path):
    """The few samples that are tried before the training may not show it."""
    counts = torch.poisson(torch.full((300, 20), 3.0), generator=torch.Generator().manual_seed(0))
    counts[7, 3] = 2.5
    np.save(tmp_path / "counts.npy", counts.numpy())
    options = 'epochs = 1\n[model_options]\nlikelihood = "poisson"\nlikelihood_options = {validate = true}\n'
    (tmp_path / "run.toml").write_text(f'data = "{tmp_path / "counts.npy"}"\n{options}')
    done = call("train", "--config", tmp_path / "run.toml", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("vaefast: error: x must be counts")


def test_train(tmp_path):
    folder = tmp_path / "a" / "run"
    done = execute([*VAEFAST, "train", "--output", str(folder), *SMALL])
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert "18/18" in done.stderr  # the progress bar: two epochs of nine steps
    assert "3 latent units) on 4,500 digits" in done.stdout
    found = json.loads((folder / "metrics.json").read_text())
    assert f"Held-out ELBO {found['held-out']['elbo']:.2f} nats per digit" in done.stdout
    assert found["epochs"] == len(found["history"]) == 2
    for name in FILES:
        assert name in done.stdout
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings.keys() == {field.name for field in dataclasses.fields(Settings)}
    given = {"output": str(folder), "epochs": 2, "batch_size": 500, "latent": 3}
    assert settings.items() >= (given | {"lr": 1e-3, "data": "digits", "ema": None, "resume": False}).items()
    assert load(folder).latent_shape == (3,)


def test_a_configuration_repeats_a_run_and_options_win(call, trained, tmp_path):
    config = trained / "config.json"
    done = call("train", "--config", config, "--output", tmp_path / "again", "--backend", "reference")
    assert done.returncode == 0, done.stderr
    assert "with the reference backend" in done.stdout
    ours, theirs = (load(folder).state_dict() for folder in (trained, tmp_path / "again"))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-3), name

    other = call("train", "--config", config, "--output", tmp_path / "again", "--epochs", 1)
    assert "The earlier run in" in other.stdout
    assert json.loads((tmp_path / "again" / "config.json").read_text())["settings"]["epochs"] == 1


def test_a_toml_file_holds_every_option(tmp_path):
    fields = {"epochs": 7, "lr": 1, "output": "there", "compile": True, "ema": 0.5, "data_options": {"limit": 5}}
    fields |= {"model_options": {"activation": "gelu", "encoder_hidden": [8, 4]}}
    text = "\n".join(f"{name} = {json.dumps(v)}" for name, v in fields.items() if not isinstance(v, dict))
    text += '\n[data_options]\nlimit = 5\n[model_options]\nactivation = "gelu"\nencoder_hidden = [8, 4]\n'
    (tmp_path / "run.toml").write_text(text)
    values = read(tmp_path / "run.toml", Settings)
    tables = {"data_options": "limit=5", "model_options": "activation=gelu encoder_hidden=[8,4]"}
    assert values == fields | tables
    assert type(values["lr"]) is float
    Settings(**values)  # takes it


def test_a_toml_table_keeps_what_its_strings_are(tmp_path):
    table = {"key": "a b", "number": "1", "word": "gelu", "nothing": "", "list": [1, "c d"], "quoted": '"'}
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    (tmp_path / "run.toml").write_text("\n".join(["[data_options]", *lines]))
    settings = Settings(**read(tmp_path / "run.toml", Settings))
    assert options(settings, "data_options") == table


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lattent = 3", ["unknown option lattent", "did you mean latent?"]),
        ("epochs = 'many'", ["epochs must be a whole number", "'many'"]),
        ("epochs = 2.5", ["epochs must be a whole number", "2.5"]),
        ("compile = 1", ["compile must be true or false", "1"]),
        ("lr = '1e-3'", ["lr must be a number", "'1e-3'"]),
        ("epochs: 3", ["is damaged"]),
        ("[output]\nname = 3", ["output must be text"]),
        ("epochs = 0", ["epochs must be from 1", "got 0"]),
    ],
)
def test_what_is_wrong_in_a_toml_file_is_named(content, words, call, tmp_path):
    (tmp_path / "run.toml").write_text(content)
    assert_one_line_error(call("train", "--config", tmp_path / "run.toml"), 2, *words)


def test_other_files_in_the_place_of_a_configuration(call, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CommandError, match="not the config.json of a run".replace(".", r"\.")):
        read(tmp_path / "config.json", Settings)
    (tmp_path / "list.json").write_text("[1]")
    assert_one_line_error(call("train", "--config", tmp_path / "list.json"), 2, "list.json is not the config.json")
    assert_one_line_error(call("train", "--config", tmp_path / "gone.toml"), 2, "gone.toml", "No such file")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    assert_one_line_error(call("train", "--config", tmp_path / "picture.toml"), 2, "picture.toml is damaged")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], ["epochs must be from 1", "got 0"]),
        (["--epochs", "many"], ["--epochs", "'many'"]),
        (["--batch-size", "-3"], ["batch size must be from 1", "got -3"]),
        (["--lr", "nan"], ["lr must be a positive number"]),
        (["--latent", "1e3"], ["--latent", "'1e3'"]),
        (["--device", "tpu"], ["device must be", "'tpu'"]),
        (["--device", "meta"], ["device must be", "'meta'"]),
        (["--device", "cuda:99"], ["there is no 'cuda:99' here"]),
        (["--backend", "cudnn"], ["must be one of", "'cudnn'"]),
        (["--backend", "cuda", "--device", "cpu"], ["backend 'cuda' was asked for but cannot run"]),
        (["--output", "{file}/run"], ["cannot write to the folder", "Not a directory"]),
        (["--output", "{file}"], ["cannot write to the folder", "File exists"]),
        (["--model", "dens"], ["model must be one of", "dense", "'dens'"]),
        (["--data", "{file}.gone"], ["there is no data"]),
        (["--colour", "red"], ["unknown argument --colour", "vaefast train --help"]),
        (["--lattent", "3"], ["unknown argument --lattent; did you mean --latent?"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, call, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    arguments = [a.format(file=file) for a in arguments]
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "run")]
    assert_one_line_error(call("train", *output, *arguments), 2, *words)
    assert not list(tmp_path.glob("run/*"))


def test_a_folder_without_permission(call, monkeypatch, tmp_path):
    def refused(**arguments):  # root, as whom tests may run, is refused nowhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    done = call("train", "--output", tmp_path)
    assert_one_line_error(done, 2, f"cannot write to the folder {tmp_path}: Permission denied")


def test_a_missing_package_is_named(call, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n in ("mlxtend", "tqdm") else found(n))
    done = call("train", "--output", tmp_path / "run")
    assert_one_line_error(done, 2, "training needs mlxtend, tqdm: pip install", "vaefast[train]")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def full_disk(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "replace", full)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("command", ["train", "sample", "reconstruct", "interpolate", "report"])
def test_a_full_disk_is_one_line(command, call, trained, tmp_path):
    output = tmp_path / ("run" if command == "train" else "file.png")
    done = call(command, *(SMALL if command == "train" else [trained]), "--output", output)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vaefast: error: No space left on device: " + str(output))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_learning_rate_that_blows_up(call, tmp_path):
    done = call("train", "--output", tmp_path, *SMALL, "--lr", "1e30")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vaefast: error: the loss became")
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_ctrl_c_keeps_the_weights(tmp_path):
    process = subprocess.Popen(
        [*VAEFAST, "train", "--output", str(tmp_path), "--epochs", "100000", "--batch-size", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where a shell runs the tests in the background, SIGINT is ignored and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        shown = ""
        while "held-out" not in shown:  # the bar shows it from the first epoch on
            shown += process.stderr.read(1)
            assert process.poll() is None, shown
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Interrupted after" in stdout
    assert "--resume` goes on from here" in stdout
    assert sorted(os.listdir(tmp_path)) == sorted(FILES)
    assert load(tmp_path).latent_shape == (6,)


# --- sample, reconstruct, interpolate ---


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_sample(call, trained, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    done = call("sample", trained, "-n", 12, "--output", sheet)
    assert (done.returncode, done.stdout) == (0, f"{sheet}\n")
    assert pixels(sheet).shape == (2 * (3 * 30 + 2), 2 * (4 * 30 + 2))

    numbers = [tmp_path / f"{name}.npy" for name in ("a", "same", "seed", "cold", "gmm")]
    options = [], [], ["--seed", 5], ["--temperature", 0.1], ["--sampler", "gmm"]
    for path, given in zip(numbers, options, strict=True):
        assert call("sample", trained, "-n", 4, "--output", path, *given).returncode == 0
    first, same, *others = map(np.load, numbers)
    assert first.shape == (4, 1, 28, 28)
    assert (first == load(trained).sample(4, seed=0).detach().numpy()).all()
    assert (first == same).all()
    drawn = np.load(tmp_path / "gmm.npy")
    mixture = Path(shutil.copytree(trained, tmp_path / "mixture"))
    config = json.loads((mixture / "config.json").read_text())
    config["settings"]["sampler"] = "gmm"
    (mixture / "config.json").write_text(json.dumps(config))
    for path, given, expected in (("own", [], drawn), ("told", ["--sampler", "prior"], first)):
        assert call("sample", mixture, "-n", 4, "--output", tmp_path / f"{path}.npy", *given).returncode == 0
        assert (np.load(tmp_path / f"{path}.npy") == expected).all()
    for other in others:
        assert (first != other).any()
    assert others[1].std(0).mean() < first.std(0).mean()


def test_a_file_for_each_sample(call, trained, tmp_path):
    assert call("sample", trained, "-n", 11, "--output", tmp_path / "each").stdout == f"11 images in {tmp_path}/each\n"
    assert sorted(os.listdir(tmp_path / "each")) == [f"{i:02}.png" for i in range(11)]
    assert pixels(tmp_path / "each" / "00.png").shape == (28, 28)


def test_reconstruct_and_interpolate_what_is_given(call, trained, tmp_path):
    model = load(trained)
    images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).convert("RGB").save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    x = images[:, None]
    call("reconstruct", trained, tmp_path, "--output", tmp_path / "made.npy")
    assert np.allclose(np.load(tmp_path / "made.npy"), model.reconstruct(x).detach(), atol=1e-6)
    ends = [tmp_path / f"{i}.png" for i in (2, 0)]
    call("interpolate", trained, *ends, "--steps", 3, "--output", tmp_path / "walk.npy")
    walk, expected = np.load(tmp_path / "walk.npy"), model.interpolate(x[2:3], x[0:1], 3)[0].detach()
    assert np.allclose(walk, expected, atol=1e-6)
    assert np.allclose(walk[[0, 2]], model.reconstruct(x[[2, 0]]).detach(), atol=1e-6)


def test_held_out_images_are_the_default(call, trained, tmp_path):
    for command in ("reconstruct", "interpolate"):
        assert call(command, trained, "--output", tmp_path / "sheet.png").returncode == 0
        assert pixels(tmp_path / "sheet.png").shape == (2 * (10 * 30 + 2), 2 * (10 * 30 + 2))


def test_an_odd_number_of_held_out_images_makes_a_walk_less(call, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    for held_out in (5, 2):
        np.savez(tmp_path / "few.npz", x_train=pixels, x_test=pixels[:held_out])
        call("train", "--output", tmp_path / "run", "--data", tmp_path / "few.npz", "--epochs", 1)
        done = call("interpolate", tmp_path / "run", "--steps", 3, "--output", tmp_path / "walk.npy")
        assert done.returncode == 0, done.stderr
        assert np.load(tmp_path / "walk.npy").shape == (held_out // 2 * 3, 1, 8, 8)


def test_no_row_holds_images_and_their_reconstructions(call, trained, tmp_path):
    for i in range(12):
        Image.new("L", (28, 28)).save(tmp_path / f"{i}.png")
    call("reconstruct", trained, tmp_path, "--output", tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (2 * (4 * 30 + 2), 2 * (10 * 30 + 2))
    assert (sheet[124:, 124:] == 255).all()  # two images and two reconstructions are left for the last two rows


def test_images_are_read_as_they_were_for_training(call, trained, tmp_path):
    pixels, found = np.arange(784, dtype=np.uint16).reshape(28, 28) // 4, []
    for name, image in (
        ("eight.png", Image.fromarray(pixels.astype(np.uint8))),
        ("sixteen.png", Image.fromarray(pixels * 256)),
        ("eight.pgm", Image.fromarray(pixels.astype(np.uint8))),
    ):
        image.save(tmp_path / name)
        (tmp_path / "in" / name).mkdir(parents=True)
        image.save(tmp_path / "in" / name / name)
        for given in (tmp_path / name, tmp_path / "in" / name):
            done = call("reconstruct", trained, given, "--output", tmp_path / "out.npy")
            assert done.returncode == 0, done.stderr
            found.append(np.load(tmp_path / "out.npy"))
            assert np.array_equal(found[-1], found[0]), given
    whole = (tmp_path / "eight.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[:40] + b"junk" + whole[44:])  # SyntaxError, in Pillow's words
    assert_one_line_error(call("reconstruct", trained, tmp_path / "broken.png"), 2, "broken.png")


def test_images_of_another_size(call, trained, tmp_path):
    Image.new("L", (20, 30)).save(tmp_path / "odd.png")
    done = call("reconstruct", trained, tmp_path / "odd.png")
    assert_one_line_error(done, 2, "odd.png is 20x30, but the model takes 28x28; --resize scales it")
    done = call("reconstruct", trained, tmp_path / "odd.png", "--resize", "--output", tmp_path / "made.npy")
    assert np.load(tmp_path / "made.npy").shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "{trained}", "-n", "0"], ["-n", "must be at least 1, got 0"]),
        (["sample", "{trained}", "--seed", str(2**63)], ["--seed", f"must be at most {2**63 - 1}"]),
        (["evaluate", "{trained}", "--samples", "5"], ["--samples", "must be at least 6, got 5"]),
        (["evaluate", "{trained}", "--seed", str(2**43)], ["--seed", f"must be at most {2**43 - 1}"]),
        (["sample", "{trained}", "--temperature", "-1"], ["--temperature", "must be a positive number"]),
        (["sample", "{trained}", "--temperature", "hot"], ["--temperature", "'hot'"]),
        (["sample", "{trained}", "--sampler", "gm"], ["unknown 'gm'; did you mean gmm?"]),
        (["sample", "{trained}", "--output", "{empty}/a.jpg"], ["--output must be FILE.png", "a.jpg"]),
        (["sample", "{trained}", "--output", "{trained}/config.json/a.png"], ["cannot make the folder"]),
        (["sample", "{empty}/gone"], ["there is no folder", "gone"]),
        (["sample", "{empty}"], ["holds no run of `vaefast train`", "checkpoint.safetensors"]),
        (["reconstruct", "{trained}", "{empty}"], ["holds no images"]),
        (["reconstruct", "{trained}", "{empty}/gone.png"], ["there is no", "gone.png"]),
        (["reconstruct", "{trained}", "{trained}/config.json"], ["config.json is not an image"]),
        (["interpolate", "{trained}", "{trained}/curves.png", "--resize"], ["in pairs, got 1"]),
        (["compare", "{trained}"], ["two or more runs, got 1"]),
        (["report", "{empty}"], ["holds no run"]),
        (["bench", "--seconds", "0"], ["--seconds", "must be a positive number"]),
        (["fly"], ["unknown 'fly'; there are train, sample,"]),
        (["sampel"], ["did you mean sample?"]),
        ([], ["COMMAND"]),
    ],
)
def test_what_is_wrong_is_named(arguments, words, call, trained, tmp_path):
    arguments = [argument.format(trained=trained, empty=tmp_path) for argument in arguments]
    assert_one_line_error(call(*arguments), 2, *words)


def test_a_run_whose_data_is_gone(call, trained, tmp_path):
    for name in ("checkpoint.safetensors", "config.json", "metrics.json"):
        content = (trained / name).read_bytes().replace(b'"data": "digits"', b'"data": "gone!!"')
        (tmp_path / name).write_bytes(content)
    assert_one_line_error(call("report", tmp_path), 2, "the data of the run in", "there is no data 'gone!!'")
    assert call("sample", tmp_path, "-n", 1).returncode == 0  # which needs none


def test_a_run_whose_data_is_no_longer_what_it_was(call, tmp_path):
    data, folder = tmp_path / "data.npy", tmp_path / "run"
    np.save(data, np.zeros((40, 8, 8), np.uint8))
    call("train", "--output", folder, "--data", data, "--epochs", 1)
    np.save(data, np.zeros((40, 9, 8), np.uint8))
    for command in ("reconstruct", "interpolate", "report"):
        assert_one_line_error(call(command, folder), 2, "(1, 9, 8)", "its model takes (1, 8, 8)")
    assert call("sample", folder).returncode == 0
    (folder / "config.json").write_text("[]")
    assert_one_line_error(call("sample", folder), 2, "config.json cannot be read")


def test_a_run_of_no_images(call, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((40, 6), "float32"))
    folder = tmp_path / "run"
    options = ["--likelihood", "gaussian", "--latent", 2, "--epochs", 1]
    assert call("train", "--data", tmp_path / "rows.npy", "--output", folder, *options).returncode == 0
    for command in ("sample", "reconstruct", "interpolate"):
        assert_one_line_error(call(command, folder), 2, "shape 6, no images; take --output FILE.npy")
    assert_one_line_error(call("evaluate", folder), 2, "no images to measure")
    assert call("sample", folder, "-n", 3, "--output", tmp_path / "new.npy").returncode == 0
    assert np.load(tmp_path / "new.npy").shape == (3, 6)
    assert call("report", folder).returncode == 0
    assert "<h2>Samples</h2>" not in (folder / "report.html").read_text()
    assert "<h2>Latent space</h2>" in (folder / "report.html").read_text()
    assert call("compare", folder, folder, "--output", tmp_path / "both").returncode == 0
    assert os.listdir(tmp_path / "both") == ["compare.md"]


# --- evaluate, compare, report ---


@pytest.fixture
def measured(monkeypatch):
    """`metrics.evaluate` without its half minute; what it was called with."""
    calls = []

    def evaluate(model, train, test, **options):
        calls.append({"train": train, "test": test, **options})
        return {
            "frechet_distance": {"label": "FD-lite0", "value": 100.0 * len(calls), "low": 100.0 * len(calls) - 1,
                                 "high": 100.0 * len(calls) + 1, "direction": "lower", "training_images": 20.0,
                                 "samples": options["samples"]},
            "nll": {"label": "NLL (nats)", "value": None, "low": None, "high": None, "direction": "lower",
                    "why_not": "not asked for"},
        }  # fmt: skip

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    return calls


def test_evaluate_keeps_what_it_prints_for_the_report_and_for_compare(call, trained, measured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, _ = (Path(shutil.copytree(trained, name)) for name in ("first", "second"))
    assert "not measured yet: first, second" in call("compare", "first", "second").stdout

    done = call("evaluate", "first", "--samples", 50, "--seed", 3, "--importance-samples", 0)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| FD-lite0 +\| 100 \[99\.0,\N{NO-BREAK SPACE}101\] \| +20\.0 \| +lower \|", done.stdout)
    assert "NLL (nats): not measured, not asked for" in done.stdout
    assert json.loads((first / "evaluation.json").read_text())["frechet_distance"]["value"] == 100
    call("evaluate", "second", "--sampler", "gmm", "--samples", 50)
    prior, gmm = measured
    assert (len(prior["train"]), len(prior["test"])) == (4500, 500)
    assert (prior["samples"], prior["seed"], prior["importance_samples"], prior["sampler"]) == (50, 3, 0, None)
    assert gmm["sampler"].sample(2).shape == (2, 3)

    compared = call("compare", "first", "second", "--output", "side by side").stdout
    assert re.search(r"\| FD-lite0 ↓ +\| \*\*100 \[99\.0,.101\]\*\* \| +200 \[199,.201\] \|", compared)
    assert re.search(r"\| measured with sampler +\| +prior \| +gmm \|", compared)
    assert "measured with samples" not in compared  # the same
    assert compared.startswith((tmp_path / "side by side" / "compare.md").read_text().split("\n\n!")[0])
    assert pixels(tmp_path / "side by side" / "compare.png").shape == (844, 1256, 3)

    assert call("report", "first").stdout == "first/report.html\n"
    assert "100 [99.0,\N{NO-BREAK SPACE}101]" in (first / "report.html").read_text()


def test_evaluate_takes_at_most_so_many_images(call, trained, measured, monkeypatch, tmp_path):
    monkeypatch.setattr("vaefast.commands.evaluate.MOST_IMAGES", 1000)
    done = call("evaluate", shutil.copytree(trained, tmp_path / "run"))
    assert "compared with 1,000 of 4,500 training images" in done.stderr
    assert (len(measured[0]["train"]), len(measured[0]["test"])) == (1000, 500)


@pytest.mark.slow
def test_evaluate_measures(call, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    done = call("evaluate", folder, "--samples", 100, "--importance-samples", 2)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["frechet_distance"]["low"] < found["frechet_distance"]["value"] < found["frechet_distance"]["high"]
    for name in metrics.ROWS:
        assert found[name]["label"] in done.stdout


# --- info and bench ---


@pytest.mark.parametrize("error", ["samples must be finite", "k must be from 1 to 2, the other points, got 3"])
def test_what_cannot_be_measured_is_one_line(error, call, trained, monkeypatch):
    def evaluate(*arguments, **options):
        raise ValueError(error)

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    assert_one_line_error(call("evaluate", trained), 2, str(trained), error)


def test_info(call, monkeypatch):
    monkeypatch.setenv("VAEFAST_BACKEND", "reference")
    done = call("info")
    assert done.returncode == 0, done.stderr
    assert "reference, asked for by name" in done.stdout
    for op in TABLE:
        assert op in done.stdout
    facts = json.loads(call("info", "--json").stdout)
    assert facts["ops"].keys() == TABLE.keys()
    assert facts["versions"]["vaefast"] == vaefast.__version__


def test_info_with_a_name_that_does_not_exist(call, monkeypatch):
    monkeypatch.setenv("VAEFAST_BACKEND", "cudnn")
    assert_one_line_error(call("info"), 2, "VAEFAST_BACKEND", "'cudnn'")


def test_a_backend_that_cannot_run_is_one_line(call, trained, monkeypatch, tmp_path):
    wrong = {"cudnn": ["VAEFAST_BACKEND must be one of", "'cudnn'"], "cuda": ["backend 'cuda'", "on cpu tensors"]}
    for name, words in wrong.items():
        monkeypatch.setenv("VAEFAST_BACKEND", name)
        with vaefast.use_backend("auto"):  # nothing is chosen yet
            assert_one_line_error(call("sample", trained, "--output", tmp_path / "a.png"), 2, *words)
    done = execute([*VAEFAST, "sample", str(trained), "--output", str(tmp_path / "a.png")], VAEFAST_ISA="mmx")
    assert_one_line_error(done, 2, "VAEFAST_ISA must be one of", "'mmx'")


def test_a_reader_that_stops_reading():
    info = subprocess.Popen([*VAEFAST, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    info.stdout.close()
    assert info.stderr.read() == b""
    assert info.wait(timeout=60) == 1


def test_bench(call):
    done = call("bench", "--device", "cpu", "--seconds", 0.01)
    assert done.returncode == 0, done.stdout
    rows = [line for line in done.stdout.splitlines() if re.search(r"\d\.\d\dx$", line)]
    assert len(rows) == len(bench.CASES)


def test_bench_times_nothing_that_is_wrong(call, monkeypatch):
    wrong = bench.CASES[0]._replace(name="wrong", fused=lambda mu, logvar, seed: (mu * 1.01).sum() + logvar.sum())
    monkeypatch.setattr(bench, "CASES", (wrong,))
    done = call("bench", "--device", "cpu", "--seconds", 0.01)
    assert done.returncode == 1
    assert re.search(r"^wrong .* not timed$", done.stdout, re.MULTILINE)


# --- help ---


def test_help_names_every_option_and_its_default(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = call("train", "--help").stdout
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert field.metadata["help"].split()[0] in shown
    assert "(runs/digits)" in shown
    for name in models.NAMES:
        assert name in shown
    overview = call("--help").stdout
    for command in ("train", "sample", "reconstruct", "interpolate", "evaluate", "compare", "report", "info", "bench"):
        assert re.search(rf"^    {command}  +\S", overview, re.MULTILINE)
        assert call(command, "--help").returncode == 0


def test_console_script_and_version():
    script = Path(sysconfig.get_path("scripts"), "vaefast")
    assert execute([str(script), "--version"]).stdout == f"vaefast {vaefast.__version__}\n"
