"""What the models share: activations, likelihoods and priors by name, first weights, and what a decoder ends with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from vaefast.models import priors
from vaefast.nn import likelihoods

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
}

_ROWS = [row for row in likelihoods.TABLE if row.mean is not None]
LIKELIHOODS = {re.sub("(?<!^)(?=[A-Z])", "_", row.name).lower(): getattr(likelihoods, row.name) for row in _ROWS}
LIKELIHOODS["optimal_sigma"] = likelihoods.OptimalSigmaGaussian
_LOCATIONS = (likelihoods.Gaussian, likelihoods.Laplace, likelihoods.OptimalSigmaGaussian)


def choose(what: str, name: str, names: dict):
    """names[name].

    Raises:
        ValueError: for a name that is not there.
    """
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, names))}, got {name!r}")
    return names[name]


def activation(name: str) -> nn.Module:
    return choose("activation", name, ACTIVATIONS)()


def he(layer: nn.Module) -> nn.Module:
    """Weights that keep the signal's size through ReLU-like layers (He et al. 2015), bias 0. PyTorch's default shrinks
    it at every layer, and the decoder then learns to ignore z before it learns to read it."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def glorot(layer: nn.Module, heads: int = 1) -> nn.Module:
    """Weights of a last layer (Glorot and Bengio 2010), bias 0; of a linear layer's `heads`, parts of its outputs, each
    as if it were alone."""
    for weight in layer.weight.detach().chunk(heads):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(layer.bias)
    return layer


def flatten(data_shape: Sequence[int]) -> list[nn.Module]:
    """[B, *data_shape] -> [B, N]; no layer where that is the shape."""
    return [] if len(data_shape) == 1 else [nn.Flatten()]


def unflatten(data_shape: Sequence[int]) -> list[nn.Module]:
    """[B, N] -> [B, *data_shape]; no layer where that is the shape."""
    return [] if len(data_shape) == 1 else [nn.Unflatten(1, tuple(data_shape))]


def norm(channels: int) -> nn.GroupNorm:
    """Of eight groups, where channels can be divided so (Wu and He 2018)."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class Head(nn.Module):
    """What a decoder says [B, P C, *rest] as the P parameters [B, C, *rest] of a likelihood, each in its range.

    Log-variances are softly clipped at -12 and log-scales at -6, sigma at e^-6 as in the σ-VAE: a density has no upper
    bound where a pixel is the same in all images.

    Args:
        names: of the parameters.
        mean: what mu goes through: None, "softplus" or "sigmoid". A rate goes through softplus, too: the exponential of
            an untrained decoder's output overflows.
    """

    def __init__(self, names: Sequence[str], mean: str | None):
        super().__init__()
        self.names, self.mean = tuple(names), mean

    def forward(self, decoded: torch.Tensor):
        values = list(decoded.chunk(len(self.names), 1))
        for i, name in enumerate(self.names):
            if name in ("mu", "log_rate") and self.mean == "softplus":
                mean = functional.softplus(values[i]) + 1e-6  # 0 is outside a count's means
                values[i] = mean if name == "mu" else mean.log()
            elif name == "mu" and self.mean == "sigmoid":
                values[i] = torch.sigmoid(values[i])
            elif name in ("logvar", "log_scale"):
                floor = -12.0 if name == "logvar" else -6.0
                values[i] = floor + functional.softplus(values[i] - floor)
        return tuple(values) if len(values) > 1 else values[0]


def build(
    vae: type,
    encoder: nn.Module,
    decoder: Callable[[tuple[int, ...]], nn.Module],
    data_shape: Sequence[int],
    latent_shape: Sequence[int],
    *,
    likelihood: str = "bernoulli",
    likelihood_options: dict | None = None,
    prior: str | None = None,
    prior_options: dict | None = None,
    bounded: bool = False,
):
    """A VAE whose likelihood and prior are given by name.

    Args:
        vae: the class.
        decoder: makes a decoder of outputs of a shape; it has as many channels as the likelihood's parameters need.
        likelihood: one of LIKELIHOODS; likelihood_options: of its class, such as {"logvar": 0.0} for a Gaussian of
            fixed sigma (without it the decoder says logvar), {"n_mixtures": 10} (the default) for the mixture, or
            {"total": 16} for counts, which the binomial ones must have; a torch.nn.Parameter, or {"learned": numbers},
            is trained, such as a log_theta per gene. Images of "discretized_..." are uint8.
        bounded: the mean of a Gaussian or Laplace likelihood is a sigmoid's, as images lie in 0…1, where a black pixel
            is easily said; False for data of another range.
        prior: None for N(0, I), or one of `priors.NAMES`; prior_options: of its class.

    Raises:
        ValueError: for an unknown name, channels that the likelihood cannot have, or a binomial likelihood without its
            total.
    """
    kind = choose("likelihood", likelihood, LIKELIHOODS)
    options = {"n_mixtures": 10} if kind.row.planes else {}
    # a saved configuration has lists where tensors were, and a plain number where one without dimensions was; the
    # weights beside it must have the same names
    given = {name: _plain(value) for name, value in (likelihood_options or {}).items()}
    module = kind(**options | given)
    channels, *rest = data_shape
    if kind.row.planes:
        if channels not in (1, 3):
            raise ValueError(f"data_shape must have 1 or 3 channels for {likelihood!r}, got {tuple(data_shape)}")
        decoded = decoder(((10 if channels == 3 else 3) * module.options["n_mixtures"], *rest))
    else:
        names = [n for n in kind.row.parameters.split() if n not in module.fixed]
        if "total" in names:  # it is known of the data, not decoded
            raise ValueError(f"total must be given in likelihood_options for {likelihood!r}, got {likelihood_options}")
        decoded = decoder((channels * len(names), *rest))
        mean = "softplus" if kind.row.counts else "sigmoid" if bounded and kind in _LOCATIONS else None
        if len(names) > 1 or mean is not None:
            decoded = nn.Sequential(decoded, Head(names, mean))
    if prior is not None:
        more = {"data_shape": data_shape} if prior == "vamp" else {}
        prior = choose("prior", prior, priors.NAMES)(latent_shape, **more, **(prior_options or {}))
    # oneDNN and cuDNN run small convolutions fastest so; weights decide it for all that flows through them
    encoder, decoded = (m.to(memory_format=torch.channels_last) for m in (encoder, decoded))
    return vae(encoder, decoded, latent_shape, module, prior)


def _plain(value):
    """A list as a tensor, {"learned": …} as a parameter, a tensor of one number that is not learned as that number."""
    if isinstance(value, dict) and [*value] == ["learned"]:
        return nn.Parameter(torch.tensor(value["learned"]))
    if isinstance(value, list):
        return torch.tensor(value)
    plain = isinstance(value, torch.Tensor) and value.ndim == 0 and not isinstance(value, nn.Parameter)
    return value.item() if plain else value


def sizes(data_shape: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of an image and of its halvings, rounded up, until neither is above 7.

    Raises:
        ValueError: unless data_shape is (channels, height, width), height or width above 7.
    """
    if len(data_shape) != 3 or min(data_shape) < 1:
        raise ValueError(f"data_shape must be (channels, height, width), got {tuple(data_shape)}")
    if max(data_shape[1:]) <= 7:
        raise ValueError(f"data_shape must be larger than 7 in height or width, got {tuple(data_shape)}")
    result = [tuple(data_shape[1:])]
    while max(result[-1]) > 7:
        result.append(tuple([-(-s // 2) for s in result[-1]]))
    return result


def last_up(channels: int, shape: Sequence[int]) -> list[nn.Module]:
    """From half the image's size to what the decoder says [B, *shape]: a 4x4 transpose, cropped where a size is odd."""
    odd = [size % 2 for size in shape[1:]]
    layers = [glorot(nn.ConvTranspose2d(channels, shape[0], 4, 2, 1))]
    return layers + ([nn.ZeroPad2d((0, -odd[1], 0, -odd[0]))] if any(odd) else [])


class Upsample(nn.Module):
    """Nearest neighbours, to a size."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}"
