"""From settings to a trainer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch

from vaefast import data, models, nn, objectives, sampling
from vaefast.training import distributed
from vaefast.training.settings import Settings, SettingsError, options
from vaefast.training.trainer import Trainer

_ANNEALERS = {"linear": nn.Linear, "cosine": nn.Cosine, "cyclical": nn.Cyclical}


def load_data(settings: Settings) -> data.Split:
    """
    Raises:
        SettingsError: for data that is not there, or cannot be read.
    """
    try:
        return data.load(settings.data, **options(settings, "data_options"))
    except (TypeError, ValueError) as error:
        raise SettingsError(str(error)) from None


def model(settings: Settings, data_shape) -> tuple[torch.nn.Module, dict]:
    """The model, and the configuration from which `models.create` makes it again."""
    chosen = {name: getattr(settings, name) for name in ("likelihood", "prior") if getattr(settings, name) is not None}
    offered = {"data_shape": list(data_shape), "latent": settings.latent}
    config = _offer(models.NAMES.get(settings.model), offered) | chosen | options(settings, "model_options")
    made = create("model", models.create, settings.model, config)
    return made, getattr(made, "config", {"name": settings.model, **config})


def objective(settings: Settings, split: data.Split, model: torch.nn.Module) -> Callable:
    offered = {"data_shape": list(split.train.shape[1:]), "dataset_size": len(split.train), "model": model}
    if hasattr(model, "latent_shape"):
        offered["latent"] = math.prod(model.latent_shape)
    if distributed.world() > 1:
        offered["group"] = torch.distributed.group.WORLD
    given = _offer(objectives.NAMES.get(settings.objective), offered) | options(settings, "objective_options")
    return create("objective", objectives.create, settings.objective, given)


def _offer(function: Callable | None, offered: dict) -> dict:
    """What `function` takes of what is offered."""
    taken = () if function is None else inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in taken}


def create(what: str, maker: Callable, name: str, given: dict):
    """maker(name, **given).

    Raises:
        SettingsError: for what it does not take.
    """
    try:
        return maker(name, **given)
    except (RuntimeError, TypeError, ValueError) as error:  # a RuntimeError is PyTorch's, of a size below 0
        who = f"{what} {name!r}: "
        raise SettingsError(who + str(error).removeprefix(who)) from None


def check_sampler(settings: Settings, model: torch.nn.Module, count: int) -> None:
    """
    Raises:
        SettingsError: for a sampler that is not meant for this model, or for `count` samples to be fitted to.
    """

    def check(name: str, **given) -> None:
        sampling.create(name, **given).check(model, count)

    if settings.sampler != sampling.PRIOR:
        create("sampler", check, settings.sampler, options(settings, "sampler_options"))


def trainer(settings: Settings, model: torch.nn.Module, objective: Callable, steps_per_epoch: int) -> Trainer:
    """
    Raises:
        SettingsError: for settings that do not fit each other or this machine.
    """
    if distributed.world() > 1 and hasattr(getattr(model, "likelihood", None), "group"):
        model.likelihood.group = torch.distributed.group.WORLD  # for a sigma of the batch
    parameters, critic_optimizer = list(model.parameters()), None
    if hasattr(objective, "critic_loss"):
        critics = {id(p) for p in objective.critic.parameters()}
        parameters = [p for p in parameters if id(p) not in critics]  # of which the model's encoder may be one
        # less momentum than usual: a rival that moves (Radford et al. 2016; 0.5 and 0.9 as in latent diffusion's code)
        lr = settings.critic_lr or settings.lr
        critic_optimizer = _optimizer(settings, objective.critic.parameters(), lr, betas=(0.5, 0.9))
    optimizer = _optimizer(settings, parameters, settings.lr)
    steps = settings.epochs * math.ceil(steps_per_epoch / settings.accumulate)
    try:
        return Trainer(
            model,
            objective,
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(settings, step, steps)),
            critic_optimizer=critic_optimizer,
            amp=settings.amp,
            ema=settings.ema,
            clip=settings.clip,
            skip_above=settings.skip_above,
            accumulate=settings.accumulate,
            annealers=_annealers(settings),
            early_stop=settings.early_stop,
            compile=settings.compile,
            cuda_graph=settings.cuda_graph,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _optimizer(settings: Settings, parameters, lr: float, **more) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, lr=lr, weight_decay=settings.weight_decay, fused=True, **more)


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps`, as a multiple of the one at the start."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = min((step - settings.warmup) / max(steps - settings.warmup, 1), 1.0)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[settings.schedule]


def _annealers(settings: Settings) -> dict[str, nn.Annealer]:
    found = {}
    for name, text in options(settings, "anneal").items():
        kind, *numbers = str(text).split(":")
        try:
            steps, *ends = numbers
            found[name] = _ANNEALERS[kind](int(steps), *map(float, ends))
        except (KeyError, TypeError, ValueError) as error:
            kinds = ", ".join(_ANNEALERS)
            raise SettingsError(
                f"anneal must be name=kind:steps[:start[:end]] of the kinds {kinds}, got {name}={text} ({error})"
            ) from None
    return found
