"""The trainer's options, each against the same training written plainly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from processes import of_ranks
from torch import nn

import vaefast
from vaefast import objectives
from vaefast.data import Batches, Split
from vaefast.distributions import DiagonalGaussian
from vaefast.models import VAE, dense_vae
from vaefast.nn import Linear, OptimalSigmaGaussian
from vaefast.objectives import elbo
from vaefast.training import EMA, NotFiniteError, Settings, Trainer, build, distributed


@pytest.fixture(autouse=True)
def generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def line(count: int = 64) -> torch.Tensor:
    """[count, 3]: x, and what a linear layer shall make of it."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, x @ torch.tensor([[2.0], [-1.0]]) + 3], 1)


def squares(model, batch):
    return {"loss": (model(batch[:, :2])[:, 0] - batch[:, 2]) ** 2}


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def trained(model, data, **options) -> Trainer:
    trainer = Trainer(model, squares, sgd(model), **options)
    trainer.fit(data, epochs=1)
    return trainer


def assert_equal_weights(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


# steps that are shortened or skipped


def test_clip_shortens_the_gradient():
    model = nn.Linear(2, 1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    trained(model, [line()], clip=0.5)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm() == pytest.approx(0.1 * 0.5, rel=1e-4)  # lr times the norm


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_skipped_and_counted(value):
    batches = list(line().split(8))
    model, twin = nn.Linear(2, 1), nn.Linear(2, 1)
    twin.load_state_dict(model.state_dict())
    broken = batches[3].clone()
    broken[5, 0] = value
    trainer = trained(model, [*batches[:3], broken, *batches[3:]])
    alone = trained(twin, batches)
    assert trainer.skipped == 1
    assert trainer.steps == 9
    assert alone.skipped == 0
    assert_equal_weights(model, twin)
    assert trainer.history == alone.history


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite():
    def root(model, batch):
        loss = model(batch[:, :2])[:, 0].square()
        return {"loss": loss + (batch[:, 0] * model.weight.sum() * 0).abs().sqrt()}  # sqrt'(0) * 0 is NaN

    model = nn.Linear(2, 1)
    before = copy.deepcopy(model)
    trainer = Trainer(model, root, sgd(model))
    with pytest.raises(NotFiniteError, match="the gradient became infinite or NaN in epoch 1"):
        trainer.fit(line().split(8), epochs=1)
    assert trainer.skipped == 8
    assert_equal_weights(model, before)


class Table(nn.Module):
    """A number for each of eight labels, of gradients that are sparse or complex."""

    def __init__(self, kind: str):
        super().__init__()
        self.sparse = kind == "sparse"
        self.numbers = nn.Parameter(torch.zeros(8, 1, dtype=torch.float32 if self.sparse else torch.complex64))

    def forward(self, labels):
        rows = nn.functional.embedding(labels, self.numbers, sparse=True) if self.sparse else self.numbers[labels]
        return rows[:, 0]


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_of_any_kind_are_looked_at(kind):
    def distance(model, batch):
        return {"loss": (model(batch[:, 0].long()) - batch[:, 1]).abs().square()}

    model, twin = Table(kind), Table(kind)
    batches = [torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([[3.0, 1e20], [3.0, 1.0]])]  # 1e40 is inf
    trainer = Trainer(model, distance, sgd(model))
    trainer.fit(batches, epochs=1)
    assert trainer.skipped == 1
    optimizer = sgd(twin)
    distance(twin, batches[0])["loss"].mean().backward()
    optimizer.step()
    assert_equal_weights(model, twin)


def test_skip_above_leaves_large_gradients_out():
    batches = list(line().split(8))
    model, twin = nn.Linear(2, 1), nn.Linear(2, 1)
    twin.load_state_dict(model.state_dict())
    far = batches[0] * 100
    trainer = trained(model, [batches[0], far, *batches[1:]], skip_above=100.0)
    trained(twin, batches)
    assert trainer.skipped == 1
    assert_equal_weights(model, twin)
    with pytest.raises(NotFiniteError, match="no step of epoch 2 was taken: each gradient's norm is above skip_above"):
        trainer.fit([far], epochs=1)


# mixed precision


def dtype_seen(model, batch):
    decoded = model(batch[:, :2])
    seen.append(decoded.dtype)
    return {"loss": (decoded[:, 0].float() - batch[:, 2]) ** 2}


seen: list[torch.dtype] = []


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp_is_the_type_of_layers_in_training_and_evaluation(amp, dtype):
    seen.clear()
    model = nn.Linear(2, 1)
    trainer = Trainer(model, dtype_seen, sgd(model), amp=amp)
    trainer.fit(Batches(line(), 8), Batches(line(), 64), epochs=8)
    assert set(seen) == {dtype}
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, torch.tensor([[2.0, -1.0]]), atol=0.05, rtol=0)


def test_fp16_scales_the_loss_so_that_small_gradients_live():
    def tiny(model, batch):
        return {"loss": model(batch[:, :2])[:, 0].float() * 1e-6}  # half's smallest number is 6e-8; 1e-6 / 64 is below

    model, plain = nn.Linear(2, 1), nn.Linear(2, 1)
    plain.load_state_dict(model.state_dict())
    data = line() + 1
    for each, amp in ((model, "fp16"), (plain, "none")):
        Trainer(each, tiny, sgd(each, 1e4), amp=amp).fit([data], epochs=1)
    assert not torch.equal(model.bias, nn.Parameter(torch.zeros(1)))
    torch.testing.assert_close(model.weight, plain.weight, atol=1e-5, rtol=1e-3)


def test_an_overflow_lowers_the_scale_and_is_no_failure():
    def large(model, batch):
        return {"loss": model(batch[:, :2])[:, 0].float() * 100}  # times 65,536 overflows half

    model = nn.Linear(2, 1)
    trainer = Trainer(model, large, sgd(model, 1e-6), amp="fp16")
    before = model.weight.detach().clone()
    trainer.fit([line() + 3], epochs=12)
    assert 0 < trainer.skipped < 12
    assert not torch.equal(model.weight, before)


# averaged weights


def test_ema_is_the_running_average():
    model, weights = nn.Linear(2, 1), []
    trainer = Trainer(model, squares, sgd(model), ema=0.5)
    expected = model.weight.detach().clone()
    trainer.fit(Batches(line(), 8), epochs=1, on_step=lambda: weights.append(model.weight.detach().clone()))
    for t, w in enumerate(weights):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * w
    with trainer.averaged():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, weights[-1])


def test_what_is_evaluated_is_the_average():
    model = nn.Linear(2, 1)
    trainer = Trainer(model, squares, sgd(model), ema=0.9)
    trainer.fit(Batches(line(), 8), Batches(line(), 64), epochs=1)
    own = squares(model, line())["loss"].mean().item()
    with trainer.averaged():
        average = squares(model, line())["loss"].mean().item()
    assert trainer.history[-1]["held-out"]["loss"] == pytest.approx(average, rel=1e-6)
    assert average != pytest.approx(own, rel=0.01)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_ema_refuses(decay):
    with pytest.raises(ValueError, match=f"ema must be above 0 and below 1, got {decay}"):
        EMA(nn.Linear(1, 1), decay)


# accumulation


def test_accumulated_batches_are_one_batch():
    model = dense_vae((7,), 3).double()
    twin = copy.deepcopy(model)
    data = torch.rand(23, 7).double()

    def noiseless(model, x):
        mean, _ = model.moments(x).chunk(2, 1)
        loss = (model.decoder(mean) - x).square().sum(1)
        return {"loss": loss, "largest": loss}

    trainers = [
        Trainer(m, noiseless, torch.optim.Adam(m.parameters(), lr=1e-2), accumulate=k)
        for m, k in ((model, 4), (twin, 1))
    ]
    trainers[0].fit(Batches(data, 3), epochs=2)  # 3 + 3 + 3 + 3, then 3 + 3 + 3 + 2
    trainers[1].fit([data[:12], data[12:]], epochs=2)
    assert trainers[0].steps == trainers[1].steps == 4
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    for rows in zip(trainers[0].history, trainers[1].history, strict=True):
        assert rows[0]["train"] == pytest.approx(rows[1]["train"], rel=1e-9)


# a critic


class Rivals(nn.Module):
    """The model pleases the critic; the critic learns to tell data from what the model makes of it."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Linear(3, 1)

    def forward(self, model, batch):
        made = torch.cat([batch[:, :2], model(batch[:, :2])], 1)
        weight, bias = self.critic.weight.detach(), self.critic.bias.detach()
        return {"loss": -nn.functional.linear(made, weight, bias)[:, 0]}

    def critic_loss(self, model, batch):
        with torch.no_grad():
            made = torch.cat([batch[:, :2], model(batch[:, :2])], 1)
        real, fake = self.critic(batch)[:, 0], self.critic(made)[:, 0]
        return {"loss": torch.relu(1 - real) + torch.relu(1 + fake), "real": real}


def test_the_critic_steps_after_the_model_on_the_same_batch():
    model, objective = nn.Linear(2, 1), Rivals()
    twin, rivals = copy.deepcopy(model), copy.deepcopy(objective)
    trainer = Trainer(model, objective, sgd(model), critic_optimizer=sgd(objective.critic))
    trainer.fit(Batches(line(), 16), Batches(line(), 16), epochs=2)

    optimizer, critic_optimizer = sgd(twin), sgd(rivals.critic)
    sums = {"loss": 0.0, "critic_loss": 0.0, "critic_real": 0.0}
    for epoch in range(2):
        for batch in line().split(16):
            optimizer.zero_grad()
            parts = rivals(twin, batch)
            parts["loss"].mean().backward()
            optimizer.step()
            critic_optimizer.zero_grad()
            critic = rivals.critic_loss(twin, batch)
            critic["loss"].mean().backward()
            critic_optimizer.step()
            if epoch == 1:
                for name, values in (("loss", parts["loss"]), *((f"critic_{n}", v) for n, v in critic.items())):
                    sums[name] += values.sum().item() / 64
    assert_equal_weights(model, twin)
    assert_equal_weights(objective, rivals)
    assert trainer.history[-1]["train"] == pytest.approx(sums, rel=1e-5)
    assert set(trainer.history[-1]["held-out"]) == {"loss"}


def test_a_critic_needs_an_optimizer_and_only_a_critic_does():
    model, objective = nn.Linear(2, 1), Rivals()
    with pytest.raises(ValueError, match="critic_optimizer must be given for this objective"):
        Trainer(model, objective, sgd(model))
    with pytest.raises(ValueError, match="critic_optimizer must be None for this objective"):
        Trainer(model, squares, sgd(model), critic_optimizer=sgd(model))


# what changes from step to step


class Weighted:
    def __init__(self):
        self.beta = 7.0

    def __call__(self, model, batch):
        return {"loss": self.beta * squares(model, batch)["loss"]}


def test_annealers_set_numbers_of_the_objective():
    model, objective, seen = nn.Linear(2, 1), Weighted(), []
    trainer = Trainer(model, objective, sgd(model), annealers={"beta": Linear(4)})
    trainer.fit(Batches(line(), 16), epochs=2, on_step=lambda: seen.append(objective.beta.item()))
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert isinstance(objective.beta, torch.Tensor)
    with pytest.raises(ValueError, match="annealers must name numbers of the objective, which has no 'gamma'"):
        Trainer(model, objective, sgd(model), annealers={"gamma": Linear(4)})


def test_early_stop_keeps_the_best_epoch():
    model = nn.Linear(2, 1)
    optimizer = sgd(model)
    trainer = Trainer(model, squares, optimizer, early_stop=2)
    weights = []

    def away(row):
        weights.append(copy.deepcopy(model.state_dict()))
        if len(weights) == 3:
            optimizer.param_groups[0]["lr"] = 2.5  # from here on it diverges

    trainer.fit(Batches(line(), 64), Batches(line(), 64), epochs=50, on_epoch=away)
    assert len(trainer.history) == 5
    losses = [row["held-out"]["loss"] for row in trainer.history]
    assert min(losses) == losses[2]
    trainer.use_best()
    assert all(torch.equal(value, weights[2][name]) for name, value in model.state_dict().items())
    trainer.fit(Batches(line(), 64), Batches(line(), 64), epochs=50)
    assert len(trainer.history) == 5
    with pytest.raises(ValueError, match="early_stop needs held-out data"):
        trainer.fit(Batches(line(), 64), epochs=1)


def test_stop_ends_after_the_step_and_fit_goes_on_there():
    model, twin = nn.Linear(2, 1), nn.Linear(2, 1)
    twin.load_state_dict(model.state_dict())
    whole, broken = (Trainer(m, squares, sgd(m)) for m in (twin, model))
    torch.manual_seed(1)
    whole.fit(Batches(line(), 8, shuffle=True), epochs=2)
    torch.manual_seed(1)
    batches = Batches(line(), 8, shuffle=True)
    broken.fit(batches, epochs=2, on_step=lambda: broken.stop() if broken.steps == 11 else None)
    assert broken.steps == 11
    assert len(broken.history) == 1
    broken.fit(batches, epochs=1)
    assert broken.history == whole.history
    assert_equal_weights(model, twin)


# arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": "fp8"}, "amp must be one of 'none', 'bf16', 'fp16', got 'fp8'"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip": 0.0}, "clip must be above 0, got 0"),
        ({"skip_above": math.nan}, "skip_above must be above 0, got nan"),
        ({"early_stop": 0}, "early_stop must be at least 1 epoch, got 0"),
        ({"cuda_graph": True}, "cuda_graph needs a model on a CUDA device, and this one is on cpu"),
    ],
)
def test_trainer_refuses(options, message):
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=message):
        Trainer(model, squares, sgd(model), **options)


def test_an_epoch_without_batches_is_named():
    model = nn.Linear(2, 1)
    trainer = Trainer(model, squares, sgd(model))
    with pytest.raises(ValueError, match="a generator gives them only once"):
        trainer.fit((line() for _ in range(2)), epochs=2)
    assert len(trainer.history) == 1


# compilers


def test_compile_trains_the_same(compiler):
    model = nn.Linear(2, 1)
    twin = copy.deepcopy(model)
    for m, compiled in ((model, True), (twin, False)):
        trainer = Trainer(m, Weighted(), sgd(m), annealers={"beta": Linear(8)}, compile=compiled)
        trainer.fit(Batches(line(60), 16), epochs=2)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"clip": 1.0, "ema": 0.9}, {"amp": "bf16"}])
def test_a_captured_step_trains_the_same(options):
    data = torch.rand(60, 7, device="cuda")
    torch.manual_seed(0)
    model = dense_vae((7,), 3).cuda()
    twin = copy.deepcopy(model)
    trainers = []
    for m, captured in ((model, True), (twin, False)):
        optimizer = torch.optim.Adam(m.parameters(), lr=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 32)
        trainers.append(Trainer(m, elbo, optimizer, schedule, cuda_graph=captured, **options))
        torch.manual_seed(1)
        trainers[-1].fit(Batches(data, 8, shuffle=True), epochs=4)  # seven batches of 8 and one of 4 each
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    for rows in zip(trainers[0].history, trainers[1].history, strict=True):
        assert rows[0]["train"] == pytest.approx(rows[1]["train"], rel=1e-4)


@pytest.mark.gpu
def test_a_captured_step_skips_a_batch_that_is_not_finite():
    data = torch.rand(64, 7, device="cuda")
    data[41, 3] = math.nan  # in the sixth batch, a replayed one
    model = dense_vae((7,), 3).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    trainer = Trainer(model, elbo, optimizer, cuda_graph=True)
    trainer.fit(Batches(data, 8), epochs=1)
    assert trainer.skipped == 1
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="cuda_graph needs optimizer to have fused=True"):
        Trainer(model, elbo, sgd(model), cuda_graph=True)


# several processes


def _noisy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Noisy:
    """The noise that an objective would draw is noted and not used: ranks draw their own, as they must."""

    def __init__(self):
        self.seeds = []

    def __call__(self, model, batch):
        self.seeds.append(vaefast.draw_seed()[0].item())
        loss = (model(batch) - batch).square().sum(1)
        return {"loss": loss, "half": loss / 2}


class Reseeded(Batches):
    """What ranks do at the beginning of an epoch, so that one process has the order of rank 0."""

    def __iter__(self):
        batches = super().__iter__()
        torch.manual_seed(int(torch.randint(2**62, ())))
        return batches


def _train_noisy(model, kind, seed) -> dict:
    rows = line(45).double()
    rows[13, 0] = math.nan
    torch.manual_seed(seed)
    objective = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trainer = Trainer(model, objective, optimizer, clip=0.5, accumulate=2, ema=0.9)
    trainer.fit(kind(rows, 4, shuffle=True), Batches(line(9).double(), 4), epochs=3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {"model": state, "history": trainer.history, "skipped": trainer.skipped, "seeds": objective.seeds}


def _rank(rank):
    model = _noisy()
    if rank:
        nn.init.zeros_(model[0].weight)  # what rank 0 holds shall count
    return _train_noisy(model, Batches, 5 + rank)


def _assert_as_one(first, second, alone):
    """Two ranks trained alike, and as one process did, but that sums of halves round differently."""
    assert first["history"] == second["history"]
    for ours, expected in zip(first["history"], alone["history"], strict=True):
        for split in ("train", "held-out"):
            assert ours[split] == pytest.approx(expected[split], rel=1e-9)
    for name, value in alone["model"].items():
        assert torch.equal(first["model"][name], second["model"][name])
        torch.testing.assert_close(first["model"][name], value, rtol=1e-9, atol=1e-12)


def test_two_processes_train_as_one(tmp_path):
    """45 rows in batches of 4: the last one has one row, so that the second rank has none of it."""
    first, second = of_ranks(_rank, 2, tmp_path)
    alone = _train_noisy(_noisy(), Reseeded, 5)
    assert first["skipped"] == second["skipped"] == alone["skipped"] == 3
    _assert_as_one(first, second, alone)
    assert first["seeds"] == alone["seeds"]
    assert not set(first["seeds"]) & set(second["seeds"])


class Still(VAE):
    """Its noise is known: eps of a row is a function of that row, and of the prior its share of a table."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 4), nn.Linear(2, 3), (2,), OptimalSigmaGaussian())
        self.double()

    def draw(self, x, *, seed=None):
        q = DiagonalGaussian(self.encoder(x))
        return q.mean + q.std * torch.sin(9 * x[:, :2]), q.kl(), q

    def sample_prior(self, count):
        table = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return distributed.shard(table)[:count]


class Critic(nn.Module):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__()
        self.features, self.logits = nn.Linear(3, 5).double(), nn.Linear(5, 1).double()

    def forward(self, x):
        h = self.features(x)
        return h, self.logits(h.tanh()).squeeze(1)


# objective, its options, and what it has of the whole batch; all have an optimal sigma
OF_THE_BATCH = [
    ("beta_tcvae", "", "total_correlation"),
    ("info_vae", "lambda_=20.0", "mmd"),
    ("wae_mmd", "unbiased=false kernel=rbf scales=[1.0]", "mmd"),
    ("dip_vae", "kind=II", "regulariser"),
    ("elbo", "free_bits=0.5", "regulariser"),
    ("elbo", "capacity=3.0", "regulariser"),
    ("vaegan", "reconstruction=likelihood", "weight"),
    ("vaegan_larsen", "", "weight"),
]


def _train_terms_of_the_batch() -> list[dict]:
    rows, found = line(46).double(), []
    for name, options, _ in OF_THE_BATCH:
        model = Still()
        settings = Settings(objective=name, objective_options=options, lr=1e-2, accumulate=2)
        if name.startswith("vaegan"):
            options = {"critic": Critic(), "group": dist.group.WORLD if dist.is_initialized() else None}
            given = build.options(settings, "objective_options")
            objective = objectives.create(name, **options, **given)
        else:
            objective = build.objective(settings, Split(rows, None, rows, None), model)
        trainer = build.trainer(settings, model, objective, 7)
        assert (model.likelihood.group is not None) == dist.is_initialized()
        assert copy.deepcopy(model).likelihood.group is None
        trainer.fit(Batches(rows, 7), Batches(rows, 8), epochs=2)  # the last one has 4 rows
        found.append({"model": model.state_dict(), "history": trainer.history})
    return found


def _rank_of_the_batch(rank):
    return _train_terms_of_the_batch()


def test_terms_of_the_batch_are_those_of_one_process(tmp_path):
    first, second = of_ranks(_rank_of_the_batch, 2, tmp_path)
    for (*_, part), *runs in zip(OF_THE_BATCH, first, second, _train_terms_of_the_batch(), strict=True):
        _assert_as_one(*runs)
        assert all(abs(row["train"][part]) > 1e-4 for row in runs[0]["history"])
