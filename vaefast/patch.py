"""Our ops under what people already run: diffusers, torch.distributions and scvi-tools."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator

import torch
from torch.distributions import Normal
from torch.distributions import kl as torch_kl

from vaefast import ops
from vaefast.ops import _checks
from vaefast.ops.normal import normal_kl, normal_rsample

Target = tuple[object, object, object]  # (class or module, attribute, what to put there), or (dict, key, …)


def _diffusers() -> Iterator[Target]:
    """DiagonalGaussianDistribution gets what ours is made of."""
    from vaefast.distributions import DiagonalGaussian

    theirs = importlib.import_module("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution
    for name, value in vars(DiagonalGaussian).items():
        if not name.startswith("__") or name == "__init__":
            yield theirs, name, value


def _fit(*tensors: object) -> bool:
    """Whether our ops take these; what they do not take runs as it did."""
    if not all(isinstance(t, torch.Tensor) and t.dtype in _checks.FLOATING for t in tensors):
        return False
    return len({t.device for t in tensors}) == 1


def _one_type(tensors, shape) -> list[torch.Tensor]:
    dtype = functools.reduce(torch.promote_types, [t.dtype for t in tensors])
    return [t.to(dtype).expand(shape or (1,)) for t in tensors]


def _torch() -> Iterator[Target]:
    """Normal.rsample, and the KL of two Normals."""
    original_rsample = Normal.rsample
    original_kl = torch_kl._KL_REGISTRY[Normal, Normal]

    @functools.wraps(original_rsample)
    def rsample(self, sample_shape=torch.Size()):  # noqa: B008 - torch's own signature
        if not _fit(self.loc, self.scale):
            return original_rsample(self, sample_shape)
        shape = self._extended_shape(sample_shape)
        return normal_rsample(*_one_type((self.loc, self.scale), shape)).reshape(shape)

    @functools.wraps(original_kl)
    def kl(p, q):
        tensors = p.loc, p.scale, q.loc, q.scale
        if not _fit(*tensors):
            return original_kl(p, q)
        shape = torch.broadcast_shapes(*[t.shape for t in tensors])
        return normal_kl(*_one_type(tensors, shape)).reshape(shape)

    yield Normal, "rsample", rsample
    yield torch_kl._KL_REGISTRY, (Normal, Normal), kl


def _scvi() -> Iterator[Target]:
    """The log-probabilities of NB and ZINB, elementwise, with scvi-tools' eps beside mean and inverse dispersion."""
    module = importlib.import_module("scvi.distributions._negative_binomial")
    original_nb, original_zinb = module.log_nb_positive, module.log_zinb_positive

    @functools.wraps(original_nb)
    def log_nb_positive(x, mu, theta, eps=1e-8, *functions, **named):
        if not _fit(mu, theta, x):  # jax arrays come here too
            return original_nb(x, mu, theta, eps, *functions, **named)
        return -ops.negative_binomial_nll(mu + eps, x, torch.log(theta + eps), batch_ndim=_ndim(x, mu, theta))

    @functools.wraps(original_zinb)
    def log_zinb_positive(x, mu, theta, pi, eps=1e-8, *functions, **named):
        if not _fit(mu, theta, x, pi):
            return original_zinb(x, mu, theta, pi, eps, *functions, **named)
        log_theta = torch.log(theta + eps)
        ndim = _ndim(x, mu, theta, pi)
        return -ops.zero_inflated_negative_binomial_nll(mu + eps, x, log_theta, pi, batch_ndim=ndim)

    yield module, "log_nb_positive", log_nb_positive
    yield module, "log_zinb_positive", log_zinb_positive


def _ndim(*tensors: torch.Tensor) -> int:
    return len(torch.broadcast_shapes(*[t.shape for t in tensors]))


_PACKAGES: dict[str, Callable[[], Iterator[Target]]] = {"torch": _torch, "diffusers": _diffusers, "scvi": _scvi}
_active: dict[str, tuple[int, list[Target]]] = {}  # package: how many patches hold it, and what was there before
_lock = threading.RLock()  # of _active and of what patches hold; reentrant, since an import may run a patch


class patch:  # noqa: N801 - used like torch.set_grad_enabled
    """Let other packages' Gaussians and counts run these ops, for the process or, as a context manager, for a block.

    | package   | what runs our ops | what differs |
    |---|---|---|
    | torch     | `Normal.rsample`, `kl_divergence` of two Normals (Independent ones too) | the noise's values |
    | diffusers | `DiagonalGaussianDistribution` | the noise's values; half types return kl and nll in float32 |
    | scvi      | log-probabilities of NegativeBinomial and ZeroInflatedNegativeBinomial | rounding |

    Values are equal within rounding, and noise has the same law; tensors that the ops do not take run as before.

    Args:
        packages: names of the table; by default all that are installed, which are then imported.

    Raises:
        ValueError: for a name that is not in the table.
        ImportError: where a package asked for by name is not installed.

    `undo()`, or the end of the block, takes it back. Patches nest: a package is as it was when its last one is undone;
    a `with` over a patch that was undone lets them run our ops again. Any thread may patch, always for the process.
    """

    def __init__(self, *packages: str):
        for name in packages:
            if name not in _PACKAGES:
                raise ValueError(f"packages must be among {', '.join(map(repr, _PACKAGES))}, got {name!r}")
        if not packages:
            packages = tuple([name for name in _PACKAGES if importlib.util.find_spec(name) is not None])
        self._packages = tuple(dict.fromkeys(packages))
        self._held: list[str] = []
        self._depth = 0  # of blocks
        self._hold()

    def _hold(self) -> None:
        try:
            with _lock:
                for name in self._packages[len(self._held) :]:
                    _hold(name)
                    self._held.append(name)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Take it back; a second call does nothing."""
        with _lock:
            while self._held:
                _release(self._held.pop())

    def __enter__(self) -> patch:
        with _lock:
            self._hold()
            self._depth += 1
        return self

    def __exit__(self, *exc_info) -> None:
        with _lock:
            self._depth -= 1
            if self._depth == 0:
                self.undo()


def _hold(package: str) -> None:
    count, before = _active.get(package, (0, []))
    if count == 0:
        for owner, name, value in list(_PACKAGES[package]()):
            names = owner if isinstance(owner, dict) else vars(owner)
            if name in names:  # what is new stays: objects made in the block go on working, and nobody else asks for it
                before.append((owner, name, names[name]))
            _put(owner, name, value)
    _active[package] = count + 1, before


def _release(package: str) -> None:
    count, before = _active.pop(package)
    if count > 1:
        _active[package] = count - 1, before
        return
    for target in before:
        _put(*target)


def _put(owner: object, name: object, value: object) -> None:
    if isinstance(owner, dict):
        owner[name] = value
        torch_kl._KL_MEMOIZE.clear()  # what was looked up before
        torch_kl._KL_MEMOIZE[name] = value  # Dynamo cannot trace the lookup
    else:
        setattr(owner, name, value)
