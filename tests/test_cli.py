"""The command as people run it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import vaefast
from vaefast.ops._define import TABLE
from vaefast.training import load
from vaefast.training.job import FILES

VAEFAST = [sys.executable, "-m", "vaefast"]
SMALL = ["--epochs", "2", "--batch-size", "500", "--latent", "3"]


def execute(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )


def assert_one_line_error(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("vaefast: error: ")
    for word in words:
        assert word in line


def patched(setup: str, *arguments: str) -> list[str]:
    """`vaefast` with its arguments, after some Python."""
    return [sys.executable, "-c", f"{setup}\nimport sys\nfrom vaefast.cli import main\nsys.exit(main({arguments!r}))"]


def test_train(tmp_path):
    folder = tmp_path / "a" / "run"
    done = execute([*VAEFAST, "train", "--output", str(folder), *SMALL])
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert "18/18" in done.stderr  # the progress bar: two epochs of nine steps
    assert "3 latent units) on 4,500 digits" in done.stdout
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"Held-out ELBO {metrics['held-out']['elbo']:.2f} nats per digit" in done.stdout
    assert metrics["epochs"] == len(metrics["history"]) == 2
    for name in FILES:
        assert name in done.stdout
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"].items() >= {
        "output": str(folder),
        "epochs": 2,
        "batch_size": 500,
        "latent": 3,
        "lr": 1e-3,
        "seed": 0,
        "device": "auto",
        "backend": "auto",
        "threads": 1,
        "data": "digits",
        "ema": None,
        "resume": False,
    }.items()
    assert load(folder).latent_shape == (3,)

    again = execute([*VAEFAST, "train", "--output", str(folder), *SMALL, "--backend", "reference"])
    assert again.returncode == 0, again.stderr
    assert "with the reference backend" in again.stdout
    assert f"The earlier run in {folder} will be replaced." in again.stdout


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
        (["--colour", "red"], ["--colour", "vaefast"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    arguments = [a.format(file=file) for a in arguments]
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "run")]
    assert_one_line_error(execute([*VAEFAST, "train", *output, *arguments]), 2, *words)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_without_permission(tmp_path):
    setup = """
import tempfile
def refused(**arguments):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = refused  # root, as whom tests may run, is refused nowhere
"""
    done = execute(patched(setup, "train", "--output", str(tmp_path)))
    assert_one_line_error(done, 2, f"cannot write to the folder {tmp_path}: Permission denied")


def test_a_command_is_needed_and_must_exist():
    assert_one_line_error(execute(VAEFAST), 2, "COMMAND")
    assert_one_line_error(execute([*VAEFAST, "fly"]), 2, "fly")


def test_a_missing_package_is_named(tmp_path):
    setup = "import sys\nsys.modules['mlxtend'] = sys.modules['tqdm'] = None"
    done = execute(patched(setup, "train", "--output", str(tmp_path / "run")))
    assert_one_line_error(done, 2, "training needs mlxtend, tqdm: pip install", "vaefast[train]")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path):
    setup = """
import errno, os
def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file")
from vaefast.training import checkpoint
checkpoint.os.replace = full
"""
    done = execute(patched(setup, "train", "--output", str(tmp_path), *SMALL))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "vaefast: error: No space left on device: the file"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_learning_rate_that_blows_up(tmp_path):
    done = execute([*VAEFAST, "train", "--output", str(tmp_path), *SMALL, "--lr", "1e30"])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vaefast: error: the loss became")
    assert os.listdir(tmp_path) == []


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
    assert sorted(os.listdir(tmp_path)) == sorted(FILES)
    assert load(tmp_path).latent_shape == (6,)


def test_help_names_every_option_and_its_default():
    done = execute([*VAEFAST, "train", "--help"], COLUMNS="200")
    assert done.returncode == 0
    for option in ("output", "epochs", "batch-size", "latent", "lr", "seed", "device", "backend", "threads"):
        assert f"--{option} " in done.stdout
    assert "(runs/digits)" in done.stdout
    assert "train" in execute([*VAEFAST, "--help"]).stdout


def test_console_script_and_version():
    script = Path(sysconfig.get_path("scripts"), "vaefast")
    assert execute([str(script), "--version"]).stdout == f"vaefast {vaefast.__version__}\n"


def test_info():
    done = execute([*VAEFAST, "info"], VAEFAST_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert "reference, asked for by name" in done.stdout
    for op in TABLE:
        assert op in done.stdout
    facts = json.loads(execute([*VAEFAST, "info", "--json"]).stdout)
    assert facts["ops"].keys() == TABLE.keys()
    assert facts["versions"]["vaefast"] == vaefast.__version__


def test_info_with_a_name_that_does_not_exist():
    assert_one_line_error(execute([*VAEFAST, "info"], VAEFAST_BACKEND="cudnn"), 2, "VAEFAST_BACKEND", "'cudnn'")


def test_a_reader_that_stops_reading():
    info = subprocess.Popen([*VAEFAST, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    info.stdout.close()
    assert info.stderr.read() == b""
    assert info.wait(timeout=60) == 1
