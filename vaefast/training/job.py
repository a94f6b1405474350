"""The run behind `vaefast train`: digits in, a folder with a trained VAE, its pictures and its numbers out."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vaefast import _backends, models
from vaefast.data import Batches, digits
from vaefast.info import versions
from vaefast.objectives import elbo
from vaefast.training import checkpoint, pictures
from vaefast.training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
FILES = {
    CHECKPOINT: "the weights, and the configuration to rebuild the model from",
    "config.json": "that configuration, to read",
    "metrics.json": "final numbers, and every epoch's",
    "curves.png": "the loss and its parts, epoch by epoch",
    "samples.png": "digits that the model made up",
    "reconstructions.png": "held-out digits (odd rows) and what the model makes of them (even rows)",
}
_COLUMNS = 10  # images per row of the pictures


class SettingsError(ValueError):
    """A setting outside its range, or one that this machine cannot honour."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `vaefast train` can be told; the defaults are what it does when told nothing.

    Raises:
        SettingsError: for a number outside its range.
    """

    output: str = "runs/digits"
    epochs: int = 100
    batch_size: int = 64
    latent: int = 6
    lr: float = 1e-3
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    threads: int = 1

    def __post_init__(self):
        ranges = {
            "epochs": (1, 10**6),
            "batch_size": (1, 10**6),
            "latent": (1, 10**5),
            "seed": (0, 2**63 - 1),
            "threads": (1, 1024),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise SettingsError(f"{name.replace('_', ' ')} must be from {low} to {high}, got {value}")
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"lr must be a positive number, got {self.lr}")


def prepare(settings: Settings) -> torch.device:
    """Make the folder, and refuse before work begins what cannot be done: returns the device.

    Raises:
        SettingsError: for a folder that cannot be written to, or a device or backend that is not there.
    """
    try:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(auto if settings.device == "auto" else settings.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …, got {settings.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"there is no {settings.device!r} here: PyTorch sees {torch.cuda.device_count()} GPUs")
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

    A KeyboardInterrupt ends the training early: what there is by then is saved, if one epoch was finished, before the
    interrupt goes on.

    Raises:
        SettingsError: before any work, as `prepare` does.
        NotFiniteError: if the loss became infinite or NaN; nothing was saved then.
        OSError: if a file could not be written.
    """
    device = prepare(settings)
    torch.set_num_threads(settings.threads)
    with _backends.use_backend(settings.backend):
        return _run(settings, device, say)


def _run(settings: Settings, device: torch.device, say: Callable[[str], None]) -> dict:
    data = digits()
    torch.manual_seed(settings.seed)
    config = {
        "model": {"data_shape": list(data.train.shape[1:]), "latent": settings.latent},
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
    }
    model = models.dense_vae(**config["model"]).to(device)
    train = Batches(data.train.to(device), settings.batch_size, shuffle=True)
    held_out = Batches(data.test.to(device), len(data.test))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * len(train))
    trainer = Trainer(model, elbo, optimizer, schedule)

    folder = Path(settings.output)
    backend = _backends.choose("rsample_kl_forward", device.type)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"Training a dense VAE ({parameters:,} parameters, {settings.latent} latent units) "
        f"on {len(data.train):,} digits"
    )
    say(f"for {settings.epochs} epochs on {device} with the {backend} backend; {len(data.test)} digits are held out.")
    if Path(folder, CHECKPOINT).exists():
        say(f"The earlier run in {folder} will be replaced.")
    interrupt = None
    started = time.perf_counter()
    try:
        _fit(trainer, train, held_out, settings.epochs)
    except KeyboardInterrupt as caught:
        if not trainer.history:
            say("Interrupted before the first epoch was finished: nothing was saved.")
            raise
        say(f"Interrupted after {len(trainer.history)} of {settings.epochs} epochs; saving what there is.")
        interrupt = caught
    seconds = time.perf_counter() - started

    parts = {"train": trainer.history[-1]["train"], "held-out": trainer.evaluate(held_out)}
    metrics = {
        **{split: {"elbo": -means["loss"], **means} for split, means in parts.items()},
        "active_units": _active_units(model, held_out.data),
        "epochs": len(trainer.history),
        "seconds": seconds,
        "images_per_second": len(trainer.history) * len(data.train) / seconds,
        "backend": backend,
        "device": str(device),
        "history": trainer.history,
    }
    _save(folder, model, held_out.data, config, metrics)
    _report(settings, metrics, folder, say)
    if interrupt is not None:
        raise interrupt
    return metrics


def _fit(trainer: Trainer, train: Batches, held_out: Batches, epochs: int) -> None:
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 5.0  # seconds: a log file wants no more than a line now and then
    with tqdm(total=epochs * len(train), unit="step", dynamic_ncols=True, mininterval=often) as bar:
        trainer.fit(
            train,
            held_out,
            epochs=epochs,
            on_step=bar.update,
            on_epoch=lambda row: bar.set_postfix_str(_postfix(row), refresh=False),
        )


def _postfix(row: dict[str, dict[str, float]]) -> str:
    parts = ", ".join(f"{name} {value:.1f}" for name, value in row["train"].items())
    return f"{parts}, held-out {row['held-out']['loss']:.1f}"


@torch.no_grad()
def _active_units(model: models.VAE, images: torch.Tensor) -> int:
    """How many latent units' means depend on the image: variance above 0.01 (Burda et al. 2016, section 5.2)."""
    return int((model.encode(images).mode().var(0) > 0.01).sum())


@torch.no_grad()
def _save(folder: Path, model: models.VAE, held_out: torch.Tensor, config: dict, metrics: dict) -> None:
    """Write FILES, the weights first."""
    model.eval()
    checkpoint.save(folder / CHECKPOINT, model, {"config": json.dumps(config)})
    checkpoint.write_json(folder / "config.json", config)
    checkpoint.write_json(folder / "metrics.json", metrics)
    checkpoint.write(folder / "curves.png", pictures.curves(metrics["history"]))
    samples = model.sample(_COLUMNS**2, seed=config["settings"]["seed"])
    checkpoint.write(folder / "samples.png", pictures.grid(samples, _COLUMNS))
    shown = held_out[:: len(held_out) // (5 * _COLUMNS)]  # sorted by class, so five of each
    checkpoint.write(
        folder / "reconstructions.png", pictures.reconstructions(shown, model.reconstruct(shown), _COLUMNS)
    )


def _report(settings: Settings, metrics: dict, folder: Path, say: Callable[[str], None]) -> None:
    held_out, active = metrics["held-out"], metrics["active_units"]
    say(
        f"Trained in {metrics['seconds']:.0f} s ({metrics['images_per_second']:,.0f} images a second); "
        f"{active} of {settings.latent} latent units in use."
    )
    say(
        f"Held-out ELBO {held_out['elbo']:.2f} nats per digit (training {metrics['train']['elbo']:.2f}): "
        f"reconstruction {held_out['reconstruction']:.2f}, KL {held_out['kl']:.2f}."
    )
    say(f"In {folder}:")
    for name, what in FILES.items():
        say(f"  {name:<{max(map(len, FILES))}}  {what}")


def load(folder: str | Path) -> models.VAE:
    """The model that a run left in `folder`, on the CPU, in `eval()` mode.

    Raises:
        OSError, ValueError: if there is no checkpoint, or it is damaged.
    """
    tensors, metadata = checkpoint.read(Path(folder, CHECKPOINT))
    model = models.dense_vae(**json.loads(metadata["config"])["model"])
    model.load_state_dict(tensors)
    return model.eval()
