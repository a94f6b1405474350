"""Contenders of a whole training step: a VAE as a user writes it in plain PyTorch, and a step of vaefast's trainer.

Both have the same layers, batch, learning rate and loss. What differs: vaefast's data is bytes, as `vaefast train`
keeps them, and the rival's is ready floats; vaefast's layers are FusedSequential's and the rival's Sequential's;
vaefast's Adam is fused, as there, and the rival's is torch's default; vaefast's step also checks that loss and gradient
are finite, adds up the epoch's means and moves the schedule.
Denormal numbers count as 0 for all: one batch seen thousands of times lets Adam's averages decay to numbers that a
processor takes a hundred times as long for, which no training of so few steps on real data does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import Case
from benchmarks.workloads import WORKLOADS
from vaefast import models, objectives, training
from vaefast.training import build

# hidden layers of encoder and decoder, and their activation
_LAYERS = {
    "seed_mlp": ((128, 64, 32), (32, 64, 128, 256), "relu"),
    "pyro_mnist": ((400,), (400,), "softplus"),
}
_ACTIVATIONS = {"relu": nn.ReLU, "softplus": nn.Softplus}
_RATE = 1e-3


def _model(workload: str, pixels: int) -> nn.Module:
    encoder, decoder, activation = _LAYERS[workload]
    torch.manual_seed(0)
    return models.create(
        "dense",
        data_shape=(pixels,),
        latent=WORKLOADS[workload]["D"],
        encoder_hidden=encoder,
        decoder_hidden=decoder,
        activation=activation,
    )


def _bytes(workload: str, pixels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (WORKLOADS[workload]["B"], pixels), dtype=torch.uint8, generator=generator)


def _flushed(step: Callable) -> Callable:
    @functools.wraps(step)
    def call(*args, **options):
        torch.set_flush_denormal(True)
        try:
            return step(*args, **options)
        finally:
            torch.set_flush_denormal(False)

    return call


# --- what users write ---


class PlainVAE(nn.Module):
    """The usual dense VAE; forward gives -ELBO, the mean over the batch."""

    def __init__(self, workload: str, pixels: int):
        super().__init__()
        encoder, decoder, activation = _LAYERS[workload]
        latent = WORKLOADS[workload]["D"]

        def layers(*sizes: int) -> list[nn.Module]:
            return [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), _ACTIVATIONS[activation]())]

        self.encoder = nn.Sequential(*layers(pixels, *encoder))
        self.mu, self.logvar = nn.Linear(encoder[-1], latent), nn.Linear(encoder[-1], latent)
        self.decoder = nn.Sequential(*layers(latent, *decoder), nn.Linear(decoder[-1], pixels))

    def forward(self, x: torch.Tensor, eps: torch.Tensor | None = None) -> torch.Tensor:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        eps = torch.randn_like(mu) if eps is None else eps
        logits = self.decoder(mu + torch.exp(0.5 * logvar) * eps)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return (reconstruction + kl) / len(x)


def _as_plain(named: Iterable[tuple[str, torch.Tensor]]) -> list[torch.Tensor]:
    """vaefast's parameters, or their gradients, in the order of the plain VAE's, whose two heads are apart."""
    values = dict(named)
    weight, bias = (values.pop(f"encoder.heads.{name}").chunk(2) for name in ("weight", "bias"))
    encoder, decoder = ([v for n, v in values.items() if n.startswith(part)] for part in ("encoder.", "decoder."))
    return [*encoder, weight[0], bias[0], weight[1], bias[1], *decoder]


def _plain(workload: str, pixels: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """The plain VAE with vaefast's first weights, and the data."""
    model = PlainVAE(workload, pixels)
    model.load_state_dict(
        dict(zip(model.state_dict(), _as_plain(_model(workload, pixels).named_parameters()), strict=True))
    )
    return model.to(dtype), _bytes(workload, pixels).to(dtype) / 255


def eager(workload: str, pixels: int, compiled: bool = False) -> Callable:
    """A step, which returns the loss; given `eps`, the loss and its gradients at the first weights."""

    @functools.cache
    def training_step() -> Callable:
        model, x = _plain(workload, pixels)
        optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
        loss_of = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

        def step():
            optimizer.zero_grad()
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            return (loss,)

        return step

    @_flushed
    def call(eps=None):
        if eps is None:
            return training_step()()
        model, x = _plain(workload, pixels, eps.dtype)
        loss = model(x, eps)
        return loss, *torch.autograd.grad(loss, list(model.parameters()))

    return call


# --- with vaefast ---


class _Seeded:
    """An objective whose model draws its noise from this seed."""

    def __init__(self, objective: Callable, seed: torch.Tensor):
        self.objective, self.seed = objective, seed

    def __call__(self, model: nn.Module, x: torch.Tensor) -> dict:
        model.forward = functools.partial(type(model).forward, model, seed=self.seed)
        return self.objective(model, x)


def fused(workload: str, pixels: int) -> Callable:
    """The same with `vaefast train`'s own trainer; given `seed`, its first step: the loss and the gradients."""
    settings = training.Settings(lr=_RATE, batch_size=WORKLOADS[workload]["B"])

    def start(seed=None):
        model, objective = _model(workload, pixels).train(), objectives.create("elbo")
        objective = objective if seed is None else _Seeded(objective, seed)
        return build.trainer(settings, model, objective, 10**6), _bytes(workload, pixels)

    started = functools.cache(start)

    @_flushed
    def call(seed=None):
        trainer, x = started() if seed is None else start(seed)
        trainer.step([x])
        if seed is None:
            return ()
        loss = torch.tensor(trainer.means.result()["loss"], dtype=torch.float32)
        return loss, *_as_plain((name, p.grad) for name, p in trainer.model.named_parameters())

    return call


# --- the rows of the table ---


def cases(device: str) -> list[Case]:
    """None but on the CPU; one thread, as `vaefast train` has by default.

    Floor: matrix products, which are the same for both but where oneDNN makes the large ones, and memory: with 784
    pixels 0.35 M weights (seed_mlp) or 0.68 M (pyro_mnist), which a fused Adam reads and writes once and the default
    one some ten times. pyro_mnist's products are 0.5 Gflop.
    """
    if device != "cpu":
        return []
    seed_mlp, pyro = WORKLOADS["seed_mlp"], WORKLOADS["pyro_mnist"]
    return [
        Case(
            name=f"train_{workload}" + (f"_{pixels}" if workload == "seed_mlp" else ""),
            op="rsample_kl_forward",
            device=device,
            eager=eager(workload, pixels),
            fused=fused(workload, pixels),
            compiled=eager(workload, pixels, compiled=True),
            noise=(WORKLOADS[workload]["B"], WORKLOADS[workload]["D"]),
            threads=1,
            targets={"eager": 1.4, "compile": 1.1},
        )
        for workload, pixels in (*[("seed_mlp", n) for n in seed_mlp["N"]], ("pyro_mnist", pyro["N"]))
    ]
