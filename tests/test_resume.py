"""Training that was broken off goes on as if it had not been: the same weights, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import vaefast
from vaefast import checkpoint
from vaefast.data import Batches, Rows
from vaefast.nn import Cyclical
from vaefast.training import Settings, SettingsError, Trainer, run, state
from vaefast.training.job import STATE


@pytest.fixture(autouse=True)
def generator():
    with torch.random.fork_rng(devices=[]):
        yield


def silent(line: str) -> None:
    pass


# a state as a file


def test_a_state_keeps_every_bit_and_kind(tmp_path):
    shared = torch.arange(6.0)
    value = {
        "tensors": [shared, shared.view(2, 3).T, torch.tensor(3, dtype=torch.uint8), torch.rand(2).bfloat16()],
        3: (1, 2.5, None, True, "é", float("inf"), 0.1 + 0.2, -(2**62)),
        "nested": {"empty": {}, "list": [[], {}, ()]},
    }
    path = tmp_path / "folder" / "s"
    state.write(path, value, {"note": "x"})
    found, metadata = state.read(path)
    assert metadata == {"note": "x"}
    for ours, expected in zip(found.pop("tensors"), value.pop("tensors"), strict=True):
        assert torch.equal(ours, expected)
        assert ours.dtype == expected.dtype
        assert ours.stride() == expected.stride()
    assert found == value
    assert os.listdir(path.parent) == ["s"]


def test_a_state_refuses_what_would_need_pickle(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\.0 must be a tensor, a number, a string, None or a collection"):
        state.write(tmp_path / "s", {"a": [object()]})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x80\x04" + b[2:]])
def test_a_damaged_state_is_refused(tmp_path, damage):
    path = tmp_path / "s"
    state.write(path, {"a": torch.rand(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        state.read(path)
    checkpoint.save(path, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="is not the state of a training run"):
        state.read(path)


# broken off after every single step


class Rivals(nn.Module):
    """An objective with noise, a critic and a number that is annealed."""

    def __init__(self):
        super().__init__()
        convolution = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.critic = nn.Sequential(convolution, nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.beta = 1.0

    def forward(self, model, batch):
        z, kl = vaefast.rsample_kl_moments(model(batch))
        return {"loss": (z - batch).square().sum(1) + self.beta * kl, "kl": kl}

    def critic_loss(self, model, batch):
        squares = batch[:, :, None, None].expand(-1, -1, 2, 2)
        return {"loss": (self.critic(squares)[:, 0] - model(batch).detach().sum(1)).square()}


def everything(**changes) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))
    objective = Rivals()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    options = {
        "critic_optimizer": torch.optim.Adam(objective.critic.parameters(), lr=0.02, fused=True),
        "ema": 0.9,
        "clip": 1.0,
        "skip_above": 50.0,
        "accumulate": 2,
        "annealers": {"beta": Cyclical(7, cycles=2)},
        "early_stop": 5,
        **changes,
    }
    return Trainer(model, objective, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 20), **options)


def samples() -> torch.Tensor:
    data = torch.randn(27, 3, generator=torch.Generator().manual_seed(0))
    data[3] *= 1e4  # a step that is skipped
    return data


def fit(trainer: Trainer, batches, epochs: int = 3, on_step=lambda: None) -> dict:
    """The end: all that the trainer holds, and what its generator gives next."""
    trainer.fit(batches, Batches(samples()[5:], 9), epochs=epochs, on_step=on_step)
    return {**trainer.state_dict(), "next": torch.rand(3)}


def flat(value, where: str = "") -> dict:
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        return dict(itertools.chain.from_iterable(flat(v, f"{where}.{i}").items() for i, v in enumerate(value)))
    return {where: value.tolist() if isinstance(value, torch.Tensor) else value}


BATCHES = {
    "batches": lambda: Batches(samples(), 5, shuffle=True),
    "rows": lambda: Batches(Rows(lambda rows: samples()[rows], 27, (3,), torch.float32), 5, shuffle=True),
    "loader": lambda: DataLoader(samples(), 5, shuffle=True),
    "list": lambda: list(samples().split(5)),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("changes", [{}, {"amp": "fp16", "accumulate": 1, "ema": None}], ids=["float32", "fp16"])
def test_any_step_can_be_the_last_before_a_resume(tmp_path, kind, changes):
    whole, path = everything(**changes), tmp_path / "s"
    files = []

    def on_step():
        files.append(tmp_path / str(len(files)))
        state.write(files[-1], whole.state_dict())

    torch.manual_seed(1)
    end = flat(fit(whole, BATCHES[kind](), on_step=on_step))
    assert whole.skipped > 0
    assert len(files) == {2: 9, 1: 18}[whole.accumulate]
    for path in files:
        resumed = everything(**changes)
        torch.manual_seed(2)
        resumed.load_state_dict(state.read(path)[0])
        assert flat(fit(resumed, BATCHES[kind](), 3 - len(resumed.history))) == end


def test_a_state_of_another_trainer_is_refused():
    saved = everything().state_dict()
    with pytest.raises(ValueError, match="the state has ema, and the trainer does not"):
        everything(ema=None).load_state_dict(saved)
    saved["unsound"] *= 2
    with pytest.raises(ValueError, match="the state is of 2 processes, and here are 1"):
        everything().load_state_dict(saved)


# runs

RUN = {
    "model_options": "encoder_hidden=[16] decoder_hidden=[16]",
    "latent": 2,
    "epochs": 4,
    "batch_size": 16,
    "accumulate": 2,
    "ema": 0.99,
    "clip": 10.0,
    "warmup": 5,
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """300 images of 8 by 8."""
    path = tmp_path_factory.mktemp("data") / "images.npy"
    images = torch.randint(0, 256, (300, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    import numpy as np

    np.save(path, images.numpy())
    return str(path)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    with torch.random.fork_rng(devices=[]):
        run(Settings(output=str(folder), data=data, **RUN), silent)
    return folder


def assert_same_run(a: Path, b: Path) -> None:
    ours, expected = (checkpoint.read(folder / "checkpoint.safetensors")[0] for folder in (a, b))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    ours, expected = (state.read(folder / STATE)[0]["trainer"] for folder in (a, b))
    assert flat(ours) == flat(expected)
    ours, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (a, b))
    for name in ("train", "held-out", "history", "active_units", "steps"):
        assert ours[name] == expected[name]


# Imports once, and then trains in a child that needs no time to begin: folder, data, kills, settings, seed.
KILLS = """
import json, os, random, shutil, signal, sys, time
import matplotlib.figure, PIL.Image, tqdm, torch, vaefast.training.job
from vaefast.training import Settings, run

folder, data, kills, settings, seed = sys.argv[1:]
settings = Settings(output=folder, data=data, resume=True, **json.loads(settings))
random.seed(int(seed))

def training():
    child = os.fork()
    if child == 0:
        run(settings, lambda line: None)
        os._exit(0)
    return child

killed, longest = 0, 0.5
while killed < int(kills):
    child = training()
    time.sleep(random.uniform(0.0, longest))
    os.kill(child, signal.SIGKILL)
    killed += 1
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:  # the whole run took less time than so many kills
        shutil.rmtree(folder)
        killed, longest = 0, longest / 2
sys.exit(os.waitstatus_to_exitcode(os.waitpid(training(), 0)[1]))
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills, data, unbroken, tmp_path):
    settings = json.dumps(RUN)
    command = [sys.executable, "-c", KILLS, str(tmp_path), data, str(kills), settings, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, unbroken)
    assert [path for path in tmp_path.rglob("*.safetensors") if path.name.startswith(".")] == []


def settings_for(folder, data, **changes) -> Settings:
    return Settings(output=str(folder), data=data, **{**RUN, **changes})


def interrupt_at(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    """A signal in the middle of this step."""
    whole = Trainer._eager_step

    def broken(self, batches):
        if self.steps + 1 == step:
            os.kill(os.getpid(), number)
        return whole(self, batches)

    monkeypatch.setattr(Trainer, "_eager_step", broken)


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGINT), (17, signal.SIGTERM), (18, signal.SIGINT)])
def test_a_signal_ends_a_run_that_goes_on(step, number, data, unbroken, tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(KeyboardInterrupt):
            run(settings_for(tmp_path, data, checkpoint_every=0), said.append)
    assert any(f"train --output {tmp_path} --resume` goes on" in line for line in said)
    assert (tmp_path / "checkpoint.safetensors").exists() == (step > 9)  # an epoch has nine steps
    said = []
    run(Settings(output=str(tmp_path), resume=True), said.append)
    assert f"Resuming after {(step - 1) // 9} epochs, {step} steps." in said
    assert_same_run(tmp_path, unbroken)


def test_what_cannot_change_in_a_resume_is_named(data, tmp_path):
    run(settings_for(tmp_path, data, epochs=1), silent)
    with pytest.raises(SettingsError, match="cannot resume with batch_size=8: the run has batch_size=16"):
        run(Settings(output=str(tmp_path), resume=True, batch_size=8), silent)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-9])
    with pytest.raises(SettingsError, match=r"cannot resume: .*training\.safetensors is not a whole safetensors file"):
        run(Settings(output=str(tmp_path), resume=True), silent)


def test_more_epochs_after_the_end(data, unbroken, tmp_path):
    """With the same rate throughout; a schedule that falls to zero is another one for another length."""
    run(settings_for(tmp_path / "a", data, schedule="constant"), silent)
    run(settings_for(tmp_path / "b", data, schedule="constant", epochs=2), silent)
    said = []
    run(Settings(output=str(tmp_path / "b"), resume=True, epochs=4), said.append)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert said[2] == "Resuming after 2 epochs, 18 steps."


def test_nothing_to_resume_is_said(data, tmp_path):
    said = []
    run(settings_for(tmp_path, data, epochs=1, resume=True), said.append)
    assert said[2] == f"There is nothing to resume in {tmp_path}; beginning at the beginning."


def test_a_full_disk_leaves_the_last_state(data, unbroken, tmp_path):
    """A real file system of 200 kB, on which a few files grow until the state no longer fits."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("mount is not permitted here")
    try:
        ballast = tmp_path / "ballast"
        write, calls = state.write, []

        def filling(*arguments):
            calls.append(1)
            if len(calls) == 12:
                free = os.statvfs(tmp_path)
                ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
            write(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "write", filling)
            with pytest.raises(OSError, match="No space left on device") as caught:
                run(settings_for(tmp_path, data), silent)
        assert caught.value.filename == str(tmp_path / STATE)
        saved, _ = state.read(tmp_path / STATE)
        assert saved["trainer"]["steps"] == 11
        assert [path.name for path in (tmp_path / "state").iterdir()] == [Path(STATE).name]
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", tmp_path], check=True)
        run(Settings(output=str(tmp_path), resume=True), silent)
        assert_same_run(tmp_path, unbroken)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


# several processes

# Two ranks, of which the second dies at its 14th step; the run resumed; one that nobody broke off. Ranks are made as
# torchrun makes them, but do not import torch again: two folders, data, settings.
RANKS = """
import json, os, signal, sys
import matplotlib.figure, PIL.Image, tqdm, torch, vaefast.training.job
from vaefast.training import Settings, Trainer, run

broken, whole, data, settings = sys.argv[1:]
whole_step = Trainer._eager_step

def mortal_step(self, batches):
    if self.steps == 13 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_step(self, batches)

def ranks(folder, step=whole_step, **changes):
    # the parent serves, as torchrun's agent does: nobody else can take the port before a rank has it
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                Trainer._eager_step = step
                run(Settings(output=folder, data=data, **json.loads(settings), **changes))
                code = 0
            finally:
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

if __name__ == "__main__":
    assert ranks(broken, mortal_step) == [1, -9]
    assert ranks(broken, resume=True) == [0, 0]
    assert ranks(whole) == [0, 0]
"""


def python(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(vaefast.__file__).parents[1])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_a_rank_that_is_killed(data, tmp_path):
    settings = json.dumps({**RUN, "checkpoint_every": 5})
    done = python("-c", RANKS, tmp_path / "broken", tmp_path / "whole", data, settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training a dense VAE") == 3  # rank 0 alone speaks
    assert "Resuming after 1 epochs, 10 steps." in done.stdout
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    with pytest.raises(SettingsError, match="the state is of 2 processes, and here are 1"):
        run(Settings(output=str(tmp_path / "broken"), resume=True), silent)


@pytest.mark.slow
def test_torchrun(data, tmp_path):
    """That what RANKS makes by hand is what torchrun makes, and that it says which worker died."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    settings = json.dumps({**RUN, "checkpoint_every": 5})
    for name, step in (("mortal", "mortal_step"), ("immortal", "whole_step")):
        script = RANKS.split("if __name__")[0]
        run_it = f"Trainer._eager_step = {step}\nrun(Settings(output=broken, data=data, **json.loads(settings)))\n"
        (tmp_path / f"{name}.py").write_text(script + run_it)
    # by number: the name of a machine may be looked up elsewhere, and in vain
    local = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    torchrun = ["-m", "torch.distributed.run", *local]
    killed = python(*torchrun, tmp_path / "mortal.py", broken, "", data, settings)
    assert killed.returncode != 0, killed.stderr
    assert "SIGKILL" in killed.stderr, killed.stderr
    assert state.read(broken / STATE)[0]["trainer"]["steps"] == 10, killed.stderr
    resumed = settings.replace("}", ', "resume": true}')
    for folder, told in ((broken, resumed), (whole, settings)):
        done = python(*torchrun, tmp_path / "immortal.py", folder, "", data, told)
        assert done.returncode == 0, done.stderr
    assert_same_run(broken, whole)
