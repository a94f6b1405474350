"""Terms of a whole batch across processes: values and gradients are those of one process that has it all."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from processes import of_ranks
from torch.nn.parallel import DistributedDataParallel

import vaefast
from vaefast import objectives
from vaefast.distributions import DiagonalGaussian
from vaefast.models import VAEOutput
from vaefast.ops.pairs import aggregate_posterior

D, N = 4, 100
SIZES = {2: (5, 5), 3: (3, 6, 2)}  # the second ones uneven
NAMES = ("z", "mu", "logvar", "prior")


def whole(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {name: torch.randn(count, D, generator=generator, dtype=torch.float64) for name in NAMES}


def rows(count: int, first: int, size: int) -> dict[str, torch.Tensor]:
    return {name: t[first : first + size].clone().requires_grad_() for name, t in whole(count).items()}


def log_weights(t):
    return 0.5 * t["prior"][:, 0]


# each gives a value per row of its own, or the same number on every rank
TERMS = {
    "weighted": lambda t, **g: torch.stack(vaefast.total_correlation(t["z"], t["mu"], t["logvar"], N, **g), 1),
    "stratified": lambda t, **g: torch.stack(
        vaefast.total_correlation(t["z"], t["mu"], t["logvar"], N, estimator="stratified", **g), 1
    ),
    "mixture": lambda t, **g: vaefast.mixture_log_prob(t["z"], t["mu"], t["logvar"], **g),
    "weights": lambda t, **g: vaefast.mixture_log_prob(t["z"], t["mu"], t["logvar"], log_weights(t), **g),
    "imq": lambda t, **g: vaefast.mmd(t["z"], t["prior"], **g),
    "rbf": lambda t, **g: vaefast.mmd(t["z"], t["prior"], "rbf", (0.5, 2.0), unbiased=False, **g),
    "sliced": lambda t, **g: vaefast.sliced_wasserstein(t["z"], t["prior"], 7, seed=3, **g),
    "moments": lambda t, **g: vaefast.dip_moments(t["mu"], **g),
    "dip": lambda t, **g: vaefast.dip_regulariser(t["mu"], t["logvar"], **g),
}
WHOLE = ("imq", "rbf", "sliced", "moments", "dip")


def value_and_gradients(name, tensors, **group):
    value = TERMS[name](tensors, **group)
    loss = value.square().sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return value.detach(), [torch.zeros(len(tensors["z"]), D, dtype=loss.dtype) if g is None else g for g in grads]


class Encoder(torch.nn.Module):
    """Moments, and what a β-TCVAE, WAE or DIP-VAE adds to its loss."""

    def __init__(self):
        super().__init__()
        self.moments = torch.nn.Linear(6, 2 * D).double()

    def forward(self, x, eps, prior, **group):
        mu, logvar = self.moments(x).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * eps
        parts = vaefast.total_correlation(z, mu, logvar, N, estimator="stratified", **group)
        batch = vaefast.mmd(z, prior, **group) + vaefast.dip_regulariser(mu, **group)
        return (6 * parts.total_correlation + parts.mutual_information + parts.dimension_kl).mean() + batch


def step(model, rank, count, **group):
    torch.manual_seed(0)
    x, eps, prior = (torch.randn(12, size, dtype=torch.float64) for size in (6, D, D))
    size = 12 // count
    loss = model(*[t[rank * size : (rank + 1) * size] for t in (x, eps, prior)], **group)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def encoder():
    torch.manual_seed(1)
    return Encoder()


class Fixed(torch.nn.Module):
    """A model whose codes are given: objectives hand their group on."""

    def __init__(self, t):
        super().__init__()
        self.t, self.prior = t, None

    def forward(self, x):
        q = DiagonalGaussian(torch.cat([self.t["mu"], self.t["logvar"]], 1))
        return VAEOutput(x, self.t["z"], torch.zeros_like(x), q)

    def likelihood(self, decoded, x):
        return torch.zeros_like(x)

    def sample_prior(self, count):
        return self.t["prior"]


OBJECTIVES = {
    "beta_tcvae": ({"dataset_size": N, "estimator": "stratified"}, "total_correlation"),
    "wae_mmd": ({}, "mmd"),
    "info_vae": ({}, "mmd"),
    "dip_vae": ({"kind": "II"}, "regulariser"),
}


def objective_parts(t, **group):
    """[objectives, b]: of each the term that has the whole batch in it."""
    x = torch.zeros(len(t["z"]), dtype=torch.float64)
    made = {name: objectives.create(name, **options, **group) for name, (options, _) in OBJECTIVES.items()}
    return torch.stack([objective(Fixed(t), x)[OBJECTIVES[name][1]] for name, objective in made.items()]).detach()


def errors(rank, world):
    """What is refused, on every rank alike."""
    t = rows(8, 0, 3)
    with pytest.raises(ValueError, match=f"at least the batch's {3 * world} samples, got 3"):
        vaefast.total_correlation(t["z"], t["mu"], t["logvar"], 3, group=dist.group.WORLD)
    first = dist.new_group([0])
    if rank:
        with pytest.raises(TypeError, match="this process is a member of"):
            vaefast.all_gather(t["z"], first)
    # one sample on each rank is enough for what takes two of the whole batch
    one = {name: v[:1] for name, v in t.items()}
    assert torch.isfinite(vaefast.mmd(one["z"], one["prior"], group=dist.group.WORLD))
    # a rank without components has those of the others
    some = {name: v[: int(rank > 0)] for name, v in t.items()}
    mixture = vaefast.mixture_log_prob(t["z"], some["mu"], some["logvar"], group=dist.group.WORLD)
    torch.testing.assert_close(mixture, vaefast.mixture_log_prob(t["z"], one["mu"], one["logvar"]))


def run_rank(rank):
    world = dist.get_world_size()
    group, sizes = {"group": dist.group.WORLD}, SIZES[world]
    found = {}
    for name in TERMS:
        own = rows(sum(sizes), sum(sizes[:rank]), sizes[rank])
        found[name] = value_and_gradients(name, own, **group)
    found["ddp"] = step(DistributedDataParallel(encoder()), rank, world, **group)
    seeds = torch.stack([vaefast.sliced_wasserstein(whole(9)["z"], whole(9)["mu"], **group) for _ in range(2)])
    found["seeds"] = seeds
    own = rows(sum(sizes), sum(sizes[:rank]), sizes[rank])["z"]
    (grad,) = torch.autograd.grad(vaefast.all_gather(own, **group).pow(3).sum(), own, create_graph=True)
    found["twice"] = torch.autograd.grad(grad.square().sum(), own)[0]
    found["permuted"] = objectives.permute_dimensions(own, **group).detach()
    found["objectives"] = objective_parts(rows(sum(sizes), sum(sizes[:rank]), sizes[rank]), **group)
    errors(rank, world)
    return found


@pytest.fixture(scope="module", params=SIZES, ids=lambda world: f"{world} ranks")
def found(request, tmp_path_factory):
    """What each rank found."""
    return of_ranks(run_rank, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", TERMS)
def test_as_one_process(found, name):
    sizes = SIZES[len(found)]
    value, grads = value_and_gradients(name, rows(sum(sizes), 0, sum(sizes)))
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    if name in WHOLE:
        for rank in found:
            close(rank[name][0], value)
    else:
        close(torch.cat([rank[name][0] for rank in found]), value)
    # the gradient of the sum of all ranks' losses; each of them is that of the whole batch, or of its own rows
    repeated = len(found) if name in WHOLE else 1
    for i, grad in enumerate(grads):
        close(torch.cat([rank[name][1][i] for rank in found]), repeated * grad)


def test_under_ddp(found):
    """Averaged gradients are those of one process with the whole batch, without a factor anywhere."""
    loss, grads = step(encoder(), 0, 1)
    torch.testing.assert_close(torch.stack([rank["ddp"][0] for rank in found]).mean(), loss)
    for rank in found:
        for a, b in zip(rank["ddp"][1], grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_objectives(found):
    expected = objective_parts(whole(sum(SIZES[len(found)])))
    torch.testing.assert_close(torch.cat([rank["objectives"] for rank in found], 1), expected)


def test_a_permutation_over_the_ranks(found):
    """Column by column the rows of all ranks in another order, one and the same for all."""
    z = whole(sum(SIZES[len(found)]))["z"]
    assert [len(rank["permuted"]) for rank in found] == [*SIZES[len(found)]]
    permuted = torch.cat([rank["permuted"] for rank in found])
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    assert not torch.equal(permuted, z)


def test_twice_differentiable(found):
    """With R the ranks, a rank's gradient is 3 R z^2; of the sum of its squares, all ranks' together, 36 R^2 z^3."""
    z = whole(sum(SIZES[len(found)]))["z"]
    torch.testing.assert_close(torch.cat([rank["twice"] for rank in found]), 36 * len(found) ** 2 * z**3)


def test_ranks_agree_on_the_directions(found):
    assert all(torch.equal(rank["seeds"], found[0]["seeds"]) for rank in found)
    assert found[0]["seeds"][0] != found[0]["seeds"][1]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_of_a_batch(backend):
    """The rows from `first` on, against the cols of all, are those of the whole."""
    t = whole(70)
    weights = -1.0, -2.0, 0.5
    with vaefast.use_backend(backend):
        everything = aggregate_posterior(t["z"], t["mu"], t["logvar"], *weights)
        for first, last in ((0, 1), (0, 33), (33, 69), (65, 70), (69, 70)):
            some = aggregate_posterior(t["z"][first:last], t["mu"], t["logvar"], *weights, first)
            for a, b in zip(some, everything, strict=True):
                torch.testing.assert_close(a, b[first:last], rtol=1e-13, atol=1e-13)


def test_group_is_a_group():
    z = torch.zeros(3, 2)
    for call in (
        lambda g: vaefast.all_gather(z, g),
        lambda g: vaefast.total_correlation(z, z, z, 9, group=g),
        lambda g: vaefast.mixture_log_prob(z, z, z, group=g),
        lambda g: vaefast.mmd(z, z, group=g),
        lambda g: vaefast.sliced_wasserstein(z, z, group=g),
        lambda g: vaefast.dip_moments(z, group=g),
    ):
        with pytest.raises(
            TypeError, match="group must be a process group that this process is a member of, got 'all'"
        ):
            call("all")
    with pytest.raises(TypeError, match="got None"):  # what WORLD is before init_process_group
        vaefast.all_gather(z, dist.group.WORLD)
