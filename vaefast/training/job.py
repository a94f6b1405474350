"""The run behind `vaefast train`: data in, a folder with a trained VAE, its pictures and its numbers out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vaefast import _backends, checkpoint, models, objectives, sampling
from vaefast.data import Batches, DataError, Split, spread
from vaefast.info import versions
from vaefast.training import build, distributed, pictures, state
from vaefast.training.progress import Bar, TensorBoard
from vaefast.training.settings import Settings, SettingsError, options
from vaefast.training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
STATE = "state/training.safetensors"
FILES = {
    CHECKPOINT: "the weights, and the configuration to rebuild the model from",
    "config.json": "that configuration, to read",
    "metrics.json": "final numbers, and every epoch's",
    "curves.png": "the loss and its parts, epoch by epoch",
    "samples.png": "{things} that the model made up",
    "reconstructions.png": "held-out {things} (odd rows) and what the model makes of them (even rows)",
    "state": "what --resume goes on from",
}
_OF_IMAGES = ("samples.png", "reconstructions.png")
_LABELS = {"reconstruction": "reconstruction", "kl": "KL"}
_COLUMNS = 10  # images per row of the pictures
_SECONDS = 10.0  # at least, between two saves at the ends of epochs
_WATCHED = 500  # held-out samples whose active units are counted after every epoch
# what a run may change when it is resumed; everything else is part of what it is
_FREE = {"output", "epochs", "checkpoint_every", "resume", "tensorboard", "device", "backend", "threads"}
_FREE |= {"sampler", "sampler_options"}


def prepare(settings: Settings) -> torch.device:
    """Make the folder, and refuse before work begins what cannot be done: returns the device.

    Raises:
        SettingsError: for a folder that cannot be written to, a device or backend that is not there, a model or an
            objective that does not exist.
    """
    try:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(auto if settings.device == "auto" else settings.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …, got {settings.device!r}")
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"there is no '{device}' here: PyTorch sees {torch.cuda.device_count()} GPUs")
    for name, names in (("model", models.NAMES), ("objective", objectives.NAMES), ("sampler", sampling.CHOICES)):
        if getattr(settings, name) not in names:
            raise SettingsError(f"{name} must be one of {', '.join(names)}, got {getattr(settings, name)!r}")
    if settings.sampler == "gmm" and importlib.util.find_spec("sklearn") is None:
        raise SettingsError("the sampler gmm needs scikit-learn: pip install scikit-learn")
    try:
        with _backends.use_backend(settings.backend):
            _backends.choose("rsample_kl_forward", device.type)
    except (_backends.BackendError, ValueError) as error:
        raise SettingsError(str(error)) from None
    try:
        Path(settings.output).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.output).close()
    except OSError as error:
        raise SettingsError(f"cannot write to the folder {settings.output}: {error.strerror}") from None
    return device


def _print(line: str) -> None:
    print(line, flush=True)


def run(settings: Settings, say: Callable[[str], None] = _print) -> dict:
    """Train, save everything that FILES names, and return the metrics.

    Ctrl-C or SIGTERM ends the training when the step that is going on is whole: what there is by then is saved, if one
    epoch was finished, before a KeyboardInterrupt is raised; a second one does not wait. Under torchrun, every
    process takes its share of each batch, and the first one writes.

    Raises:
        SettingsError: before any work, as `prepare` does, for a run that cannot be resumed with these settings, or for
            an image that turns out to be broken.
        NotFiniteError: if the loss became infinite or NaN; what was saved before is as it was.
        OSError: if a file could not be written; the old one is as it was.
    """
    saved = None
    if settings.resume:
        settings, saved = _resumed(settings)
    device = prepare(settings)
    torch.set_num_threads(settings.threads)
    with _ranks(device), _backends.use_backend(settings.backend):
        try:
            return _run(settings, saved, device, say if distributed.rank() == 0 else lambda line: None)
        except DataError as error:  # of a sample that is made only when its turn comes
            raise SettingsError(str(error)) from None


def _resumed(settings: Settings) -> tuple[Settings, dict | None]:
    """The settings of the run in the folder, but for what was given and may change, and its state; None if it has
    none."""
    path = Path(settings.output, STATE)
    if not path.exists():
        return settings, None
    try:
        saved, metadata = state.read(path)
        earlier = json.loads(metadata["settings"])
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"cannot resume: {error}") from None
    for name in sorted(settings.given - _FREE):
        value = getattr(settings, name)
        if name not in earlier or earlier[name] != value:
            raise SettingsError(f"cannot resume with {name}={value}: the run has {name}={earlier.get(name)}")
    changed = {name: getattr(settings, name) for name in settings.given & _FREE}
    return Settings(**{**earlier, "resume": True, "output": settings.output, **changed}), saved


@contextlib.contextmanager
def _ranks(device: torch.device) -> Iterator[None]:
    """The process group that torchrun's variables describe, if there are any and there is no group."""
    dist = torch.distributed
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Run:
    """A run between its settings and its files."""

    def __init__(self, settings: Settings, device: torch.device):
        self.settings, self.folder = settings, Path(settings.output)
        data = build.load_data(settings)
        train, test = (x.to(device) if isinstance(x, torch.Tensor) else x for x in (data.train, data.test))
        self.data: Split = data._replace(train=train, test=test)
        torch.manual_seed(settings.seed)
        self.model, model_config = build.model(settings, train.shape[1:])
        self.model.to(device)
        build.check_sampler(settings, self.model, len(train))
        self.config = {"model": model_config, "settings": dataclasses.asdict(settings), "versions": versions()}
        objective = build.objective(settings, data, self.model)
        if isinstance(objective, torch.nn.Module):
            objective.to(device)
        self.train = Batches(train, settings.batch_size, shuffle=True)
        # no more than there are to train on: a total correlation's batch is part of the data set
        self.held_out = Batches(test, min(len(test), len(train), 1000))
        self.watched = test[torch.arange(0, len(test), max(1, len(test) // _WATCHED))[:_WATCHED]].to(device)
        self.trainer: Trainer = build.trainer(settings, self.model, objective, len(self.train))
        self.seconds = 0.0  # of training, those before a resume included
        self.progress: list[dict] = []  # beside trainer.history, what differs from run to run
        self._try(spread(train, 16 * distributed.world()))

    def _try(self, few: torch.Tensor) -> None:
        """Evaluate a few samples, since what does not fit is often said only where a batch comes, and data that a
        likelihood cannot have made only where it is asked to look.

        Raises:
            SettingsError: for a model and an objective that do not fit each other or the data.
        """
        likelihood = getattr(self.model, "likelihood", None)
        validate = getattr(likelihood, "validate", None)
        try:
            if validate is not None:
                likelihood.validate = True
            with torch.random.fork_rng([self.trainer.device] if self.trainer.device.type == "cuda" else []):
                self.trainer.evaluate([few])
        except (RuntimeError, TypeError, ValueError) as error:
            who = f"model {self.settings.model!r} with the objective {self.settings.objective!r}"
            raise SettingsError(f"{who}: {' '.join(str(error).split())}") from error
        finally:
            if validate is not None:
                likelihood.validate = validate

    @property
    def things(self) -> str:
        return "digits" if self.settings.data == "digits" else "samples"

    @property
    def pictorial(self) -> bool:
        shape = self.data.train.shape[1:]
        return len(shape) == 3 and shape[0] in (1, 3)

    def load_state(self, saved: dict) -> None:
        try:
            self.trainer.load_state_dict(saved["trainer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise SettingsError(f"cannot resume: {error}") from None
        self.seconds, self.progress = saved["seconds"], saved["progress"]

    def save_state(self) -> None:
        value = {"trainer": self.trainer.state_dict(), "seconds": self.seconds, "progress": self.progress}
        if distributed.rank() == 0:
            settings = json.dumps(dataclasses.asdict(self.settings))
            state.write(self.folder / STATE, value, {"settings": settings})

    @torch.no_grad()
    def active_units(self) -> int | None:
        """How many latent units' means depend on the image: variance above 0.01 (Burda et al. 2016, section 5.2).

        None for a model that has no such units.
        """
        if not hasattr(self.model, "encode"):
            return None
        self.model.eval()
        with self.trainer.averaged():
            posterior = self.model.encode(self.watched)
        return int((posterior.mode().var(0) > 0.01).sum()) if hasattr(posterior, "mode") else None


def _run(settings: Settings, saved: dict | None, device: torch.device, say: Callable[[str], None]) -> dict:
    run = _Run(settings, device)
    trainer, folder = run.trainer, run.folder
    backend = _backends.choose("rsample_kl_forward", device.type)
    parameters = sum(p.numel() for p in run.model.parameters())
    say(
        f"Training a {settings.model} VAE ({parameters:,} parameters, {settings.latent} latent units) "
        f"on {len(run.data.train):,} {run.things}"
    )
    say(
        f"for {settings.epochs} epochs on {device} with the {backend} backend; "
        f"{len(run.data.test)} {run.things} are held out."
    )
    earlier = Path(folder, CHECKPOINT).exists()
    if saved is not None:
        run.load_state(saved)
        say(f"Resuming after {len(trainer.history)} epochs, {trainer.steps:,} steps.")
    elif settings.resume:
        say(f"There is nothing to resume in {folder}; beginning at the beginning.")
    elif earlier:
        say(f"The earlier run in {folder} will be replaced.")

    interrupted = _fit(run)
    if interrupted and not trainer.history:
        if saved is None and earlier:
            say("Interrupted before the first epoch was finished: nothing was saved.")
        else:
            run.save_state()
            say(f"Interrupted after {trainer.steps:,} steps. `vaefast train --output {folder} --resume` goes on.")
        raise KeyboardInterrupt
    if interrupted:
        say(f"Interrupted after {len(trainer.history)} of {settings.epochs} epochs; saving what there is.")
    run.save_state()
    if not interrupted:
        trainer.use_best()
    metrics = _metrics(run, backend, device)
    if distributed.rank() == 0:
        with trainer.averaged():
            _save(run, metrics)
    _report(run, metrics, say)
    if interrupted:
        say(f"`vaefast train --output {folder} --resume` goes on from here.")
        raise KeyboardInterrupt
    return metrics


def _fit(run: _Run) -> bool:
    """Train to the end, saving the state now and then; True if a signal ended it before."""
    settings, trainer = run.settings, run.trainer
    before, began = run.seconds, time.perf_counter()
    saved = began
    leader = distributed.rank() == 0
    board = TensorBoard(run.folder / "tensorboard") if settings.tensorboard and leader else None
    total = settings.epochs * -(-len(run.train) // settings.accumulate)

    def save() -> None:
        nonlocal saved
        run.seconds = before + time.perf_counter() - began
        run.save_state()
        saved = time.perf_counter()

    def on_step() -> None:
        bar.step()
        if settings.checkpoint_every and trainer.steps % settings.checkpoint_every == 0:
            save()

    def on_epoch(row: dict) -> None:
        active = run.active_units()
        lr = float(trainer.optimizer.param_groups[0]["lr"])
        progress = {"samples_per_second": bar.samples_per_second, "active_units": active, "lr": lr}
        run.progress.append({**progress, "skipped_steps": trainer.skipped})
        bar.epoch(row, active)
        if board is not None:
            board.epoch(trainer, run.progress[-1])
        due = leader and not settings.checkpoint_every and time.perf_counter() - saved > _SECONDS
        if distributed.any_rank(due, trainer.device):
            save()

    with _signals(trainer) as caught, Bar(trainer, total, shown=leader) as bar:
        epochs = settings.epochs - len(trainer.history)
        trainer.fit(run.train, run.held_out, epochs=epochs, on_step=on_step, on_epoch=on_epoch)
    if board is not None:
        board.close()
    run.seconds = before + time.perf_counter() - began
    finished = len(trainer.history) >= settings.epochs or (trainer.early_stop and trainer.early_stop.reached)
    return distributed.any_rank(bool(caught), trainer.device) and not finished


@contextlib.contextmanager
def _signals(trainer: Trainer) -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM stops the trainer at the end of its step; the next interrupts."""
    caught: list[int] = []

    def handle(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        trainer.stop()

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield caught
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(run: _Run, backend: str, device: torch.device) -> dict:
    trainer = run.trainer
    parts = {"train": trainer.history[-1]["train"], "held-out": trainer.evaluate(run.held_out)}
    return {
        **{split: {"elbo": _elbo(means), **means} for split, means in parts.items()},
        "active_units": run.active_units(),
        "epochs": len(trainer.history),
        "steps": trainer.steps,
        "skipped_steps": trainer.skipped,
        "seconds": run.seconds,
        "images_per_second": trainer.samples / max(run.seconds, 1e-9),
        "backend": backend,
        "device": str(device),
        "history": trainer.history,
        "progress": run.progress,
    }


def _elbo(means: dict[str, float]) -> float:
    """Whatever was minimised; its negative for an objective that has not these parts."""
    if "reconstruction" in means and "kl" in means:
        return -means["reconstruction"] - means["kl"]
    return -means["loss"]


def _files(run: _Run) -> dict[str, str]:
    """FILES of this run."""
    things = {name: what.format(things=run.things) for name, what in FILES.items()}
    return {name: what for name, what in things.items() if run.pictorial or name not in _OF_IMAGES}


@torch.no_grad()
def _save(run: _Run, metrics: dict) -> None:
    """Write FILES, the weights first."""
    folder, model, device = run.folder, run.model.eval(), run.trainer.device
    checkpoint.save(folder / CHECKPOINT, model, {"config": json.dumps(run.config)})
    checkpoint.write_json(folder / "config.json", run.config)
    checkpoint.write_json(folder / "metrics.json", metrics)
    checkpoint.write(folder / "curves.png", pictures.curves(metrics["history"]))
    if not run.pictorial:
        return
    test = run.data.test
    count = min(5 * _COLUMNS, len(test))
    shown = test[torch.arange(count) * (len(test) // count)].to(device)  # digits are sorted by class: five of each
    made = model.reconstruct(shown)
    checkpoint.write(folder / "reconstructions.png", pictures.reconstructions(shown, made, _COLUMNS))
    seed = run.settings.seed
    told = options(run.settings, "sampler_options")
    sampler = sampling.fitted(run.settings.sampler, model, run.data.train, seed=seed, **told)
    samples = model.sample(_COLUMNS**2, seed=seed, sampler=sampler)
    checkpoint.write(folder / "samples.png", pictures.grid(samples, _COLUMNS))


def _report(run: _Run, metrics: dict, say: Callable[[str], None]) -> None:
    held_out, active, thing = metrics["held-out"], metrics["active_units"], run.things.removesuffix("s")
    in_use = "" if active is None else f"; {active} of {run.settings.latent} latent units in use"
    say(f"Trained in {metrics['seconds']:.0f} s ({metrics['images_per_second']:,.0f} images a second){in_use}.")
    if metrics["skipped_steps"]:
        say(f"{metrics['skipped_steps']} of {metrics['steps']:,} steps were skipped.")
    parts = [f"{label} {held_out[name]:.2f}" for name, label in _LABELS.items() if name in held_out]
    say(
        f"Held-out ELBO {held_out['elbo']:.2f} nats per {thing} (training {metrics['train']['elbo']:.2f}): "
        f"{', '.join(parts)}."
    )
    say(f"In {run.folder}:")
    for name, what in _files(run).items():
        say(f"  {name:<{max(map(len, FILES))}}  {what}")


def load(folder: str | Path) -> torch.nn.Module:
    """The model that a run left in `folder`, on the CPU, in `eval()` mode.

    Raises:
        OSError, ValueError: if there is no checkpoint, or it is damaged.
    """
    tensors, metadata = checkpoint.read(Path(folder, CHECKPOINT))
    model = models.create(**json.loads(metadata["config"])["model"])
    model.load_state_dict(tensors)
    return model.eval()
