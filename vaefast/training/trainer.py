"""The training loop: any module, any objective, any iterable of batches."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch

from vaefast.nn import Annealer
from vaefast.training import distributed, state
from vaefast.training.early_stop import EarlyStop
from vaefast.training.ema import EMA
from vaefast.training.graph import CapturedStep
from vaefast.training.means import Means, Parts
from vaefast.training.update import Flag, Update

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NotFiniteError(ArithmeticError):
    """The loss became infinite or NaN, and stayed so."""


class Trainer:
    """Minimises an objective, epoch by epoch.

    Args:
        model: any module; it is used where it lies when the trainer is made, and batches are moved to the device of
            its first parameter.
        objective: (model, batch) -> {"loss": [B], ...}, parts per sample; the mean loss is minimised, the others are
            reported. One with `critic`, a module, and `critic_loss(model, batch) -> parts` is adversarial: the
            critic's mean loss is minimised right after each step of the model, on the same batch.
        optimizer: of the model's parameters.
        schedule: anything with `step()`, such as a torch learning-rate scheduler; called after every step.
        critic_optimizer: of the critic's parameters, for an adversarial objective.
        amp: "none", "bf16" or "fp16": the type of autocast; fp16 scales the loss.
        ema: decay of a running average of the weights (`EMA`), which `evaluate` and `averaged` use; None for none.
        clip, skip_above: shorten gradients to this norm; take no step where the norm is larger (`Update`).
        accumulate: how many batches make one step; its loss is the mean over all their samples.
        annealers: {name of a number of the objective: Annealer}; the attribute becomes a 0-d tensor that is filled in
            place before every step.
        early_stop: epochs without a new minimum of the held-out loss after which `fit` returns; None for no such stop.
        compile: run the objective and the model through torch.compile.
        cuda_graph: record the whole step, optimizer included, as a CUDA graph, once per shape of batch.

    Attributes:
        history: one entry per finished epoch, {"train": {part: mean}, "held-out": {...} if there was such data}.
        steps, samples: how many were done.
        skipped: steps that were not taken, since loss or gradient were not finite or the norm was above `skip_above`;
            they count for the schedule, and not for the means.

    What is random (order of batches, noise) follows `torch.manual_seed`. In a process group every rank calls the same
    methods, iterates over the same batches and takes its rows of each. A term over the batch, such as a total
    correlation, free bits or a VAE-GAN's weight by gradients, is that of all ranks' rows if its objective was given
    `group`, and an optimal sigma if its likelihood was, as `vaefast train` does.

    Raises:
        ValueError: for arguments that do not fit each other, named in the message.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Callable,
        optimizer: torch.optim.Optimizer,
        schedule=None,
        *,
        critic_optimizer: torch.optim.Optimizer | None = None,
        amp: str = "none",
        ema: float | None = None,
        clip: float | None = None,
        skip_above: float | None = None,
        accumulate: int = 1,
        annealers: dict[str, Annealer] | None = None,
        early_stop: int | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
    ):
        if amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(map(repr, AMP))}, got {amp!r}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        adversarial = hasattr(objective, "critic_loss")
        if adversarial != (critic_optimizer is not None):
            raise ValueError(f"critic_optimizer must {'be given' if adversarial else 'be None'} for this objective")
        self.model, self.objective, self.schedule = model, objective, schedule
        self.device = next(model.parameters()).device
        self.accumulate = accumulate
        self._amp = AMP[amp]
        if cuda_graph:
            self._check_cuda_graph(amp)
        options = {"scaled": amp == "fp16", "clip": clip, "skip_above": skip_above, "captured": cuda_graph}
        self.optimizer = optimizer
        self._update = Update(optimizer, "optimizer", **options)
        self._critic_update = Update(critic_optimizer, "critic_optimizer", **options) if adversarial else None
        self._captured = cuda_graph
        self._step = CapturedStep(self._eager_step) if cuda_graph else self._eager_step
        self._loss = _compiled(objective) if compile else objective
        self._critic_loss = None
        if adversarial:
            self._critic_loss = _compiled(objective.critic_loss) if compile else objective.critic_loss
        self.ema = None if ema is None else EMA(model, ema)
        self.annealers = dict(annealers or {})
        self._annealed = {name: self._anneal(name) for name in self.annealers}
        self.early_stop = None if early_stop is None else EarlyStop(early_stop)

        self.history: list[dict[str, Parts]] = []
        self.steps = self.samples = 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._stopping = False
        self._begin_epoch()

    def _check_cuda_graph(self, amp: str) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"cuda_graph needs a model on a CUDA device, and this one is on {self.device}")
        if amp == "fp16":
            raise ValueError("cuda_graph takes amp 'none' or 'bf16': the loss scale of 'fp16' is decided by the host")
        if self.accumulate > 1:
            raise ValueError(f"cuda_graph takes one batch a step, got accumulate={self.accumulate}")
        if distributed.world() > 1:
            raise ValueError(f"cuda_graph runs in one process, and here are {distributed.world()}")

    def _anneal(self, name: str) -> torch.Tensor:
        if not hasattr(self.objective, name):
            raise ValueError(f"annealers must name numbers of the objective, which has no {name!r}")
        value = torch.tensor(self.annealers[name].value, device=self.device)
        setattr(self.objective, name, value)
        return value

    @property
    def skipped(self) -> int:
        return int(self._skipped)

    def fit(
        self,
        train: Iterable[torch.Tensor],
        held_out: Iterable[torch.Tensor] | None = None,
        *,
        epochs: int,
        on_step: Callable[[], object] = lambda: None,
        on_epoch: Callable[[dict[str, Parts]], object] = lambda row: None,
    ) -> None:
        """Train for `epochs` more epochs, of which one that was begun is the first.

        `on_step`, called when a step is whole, and `on_epoch` (given the epoch's history entry) show progress; in both
        `state_dict` may be called and goes on from there.

        Raises:
            ValueError: for an epoch without batches.
            NotFiniteError: at the end of an epoch in which most steps had a loss or a gradient that is not finite, or
                none was taken.
        """
        if self.early_stop is not None and held_out is None:
            raise ValueError("early_stop needs held-out data")
        self._stopping = False
        modules = [m for m in (self.model, self.objective) if isinstance(m, torch.nn.Module)]
        distributed.broadcast(t for m in modules for t in (*m.parameters(), *m.buffers()))
        distributed.broadcast([] if self.ema is None else self.ema.average)
        for _ in range(epochs):
            if self.early_stop is not None and self.early_stop.reached:
                return
            if not self._train(train, on_step):
                return
            row = {"train": self._finish_epoch()}
            if held_out is not None:
                row["held-out"] = self.evaluate(held_out)
            if self.early_stop is not None:
                with self.averaged():
                    self.early_stop.see(row["held-out"]["loss"], self.model)
            self.history.append(row)
            self._begin_epoch()
            on_epoch(row)
            if distributed.any_rank(self._stopping, self.device):
                return

    def stop(self) -> None:
        """Make `fit` return as soon as the step that is going on is whole; another `fit` continues there."""
        self._stopping = True

    def _begin_epoch(self) -> None:
        self._position = 0  # batches of this epoch that are done
        self._epoch_steps = 0
        self.means = Means()  # of the epoch that is going on, or the last one
        # of steps whose loss or gradient was not finite: how many, and their losses' sum
        self._unsound = torch.zeros(2, dtype=torch.float64, device=self.device)

    def _train(self, train: Iterable[torch.Tensor], on_step: Callable[[], object]) -> bool:
        """The rest of the epoch; False if `stop` ended it."""
        self.model.train()
        batches = self._remaining(train)
        while group := list(itertools.islice(batches, self.accumulate)):
            self.step(group)
            on_step()
            if distributed.any_rank(self._stopping, self.device):
                return False
        return True

    def step(self, batches: list[torch.Tensor]) -> None:
        """One step, of the mean loss over these batches' samples: what `fit` does with each `accumulate` of them."""
        for name, annealer in self.annealers.items():
            self._annealed[name].fill_(annealer.step())
        self._count(*self._step([batch.to(self.device, non_blocking=True) for batch in batches]))
        if self.ema is not None:
            self.ema.update()
        if self.schedule is not None:
            self._step_schedule()
        self._position += len(batches)
        self._epoch_steps += 1
        self.steps += 1
        self.samples += sum(map(len, batches))

    def _step_schedule(self) -> None:
        if self.steps > 0:
            self.schedule.step()
            return
        with warnings.catch_warnings():  # torch takes a first step that was skipped for one that was forgotten
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    def _remaining(self, train: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The batches of this epoch that are not done, in the order that was drawn when it began."""
        if self._position == 0:
            began = torch.get_rng_state().to(self.device)
            distributed.broadcast([began])
            self._epoch_began = began.cpu()
            torch.set_rng_state(self._epoch_began)
            batches = iter(train)
            first = list(itertools.islice(batches, 1))  # whose making draws the order
            if distributed.world() > 1:  # one order for all, and noise for each
                torch.manual_seed(int(torch.randint(2**62, ())) + distributed.rank())
            return itertools.chain(first, batches)
        now = torch.get_rng_state()
        torch.set_rng_state(self._epoch_began)
        if hasattr(train, "start_at"):
            batches = train.start_at(self._position)
        else:
            batches = iter(train)
            for _ in itertools.islice(batches, self._position):
                pass
        torch.set_rng_state(now)
        return batches

    def _eager_step(self, batches: list[torch.Tensor]) -> tuple[list[tuple[dict, Flag]], torch.Tensor | None]:
        """The model's step, then the critic's: their parts, and whether these count; [1 if unsound, its loss], None
        where it is known to be sound."""
        parts, taken, counted, sound = self._minimise(self._update, self._loss, batches)
        done = [(p, counted) for p in parts]
        if self._critic_update is not None:
            critic = self._minimise(self._critic_update, self._critic_loss, batches)
            done += [({_critic_name(n): v for n, v in p.items()}, critic[2]) for p in critic[0]]
            taken, sound = taken & critic[1], sound & critic[3]
        if taken is True and sound is True:
            return done, None
        taken, sound = (torch.as_tensor(flag, device=self.device) for flag in (taken, sound))
        loss = sum(p["loss"].detach().sum(dtype=torch.float64) for p in parts)
        unsound = torch.stack([(~sound).to(torch.float64), torch.where(sound, 0.0, loss)])
        self._skipped += (~taken).to(torch.int64)
        return done, unsound

    def _minimise(self, update: Update, loss_of: Callable, batches: list[torch.Tensor]):
        update.zero_grad()
        total = sum(map(len, batches))
        whole = len(batches) == 1 and distributed.world() == 1
        losses, every = [], []
        for batch in batches:
            with self._autocast():
                parts = loss_of(self.model, distributed.shard(batch))
            losses.append(parts["loss"].mean() if whole else parts["loss"].sum() / total)
            update.backward(losses[-1])
            every.append({name: values.detach() for name, values in parts.items()})
        return every, *update.step(losses)

    def _autocast(self):
        if self._amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._amp, cache_enabled=not self._captured)

    def _count(self, done: list[tuple[dict, Flag]], unsound: torch.Tensor | None) -> None:
        for parts, taken in done:
            self.means.add(parts, taken)
        if unsound is not None:
            self._unsound += unsound

    def _finish_epoch(self) -> Parts:
        if self._epoch_steps == 0:
            raise ValueError("train must give batches in every epoch, and gave none; a generator gives them only once")
        count, loss = self._unsound.clone(), self._unsound[1:].clone()
        distributed.sum_all([loss])
        epoch = len(self.history) + 1
        if 2 * count[0] > self._epoch_steps:
            what = "gradient became infinite or NaN" if loss.isfinite() else f"loss became {loss.item()}"
            raise NotFiniteError(f"the {what} in epoch {epoch}")
        means = self.means.result()
        if math.isnan(means["loss"]):
            raise NotFiniteError(f"no step of epoch {epoch} was taken: each gradient's norm is above skip_above")
        return means

    @torch.no_grad()
    def evaluate(self, batches: Iterable[torch.Tensor]) -> Parts:
        """The mean of each part over all samples, in `eval()` mode, without gradients, of the averaged weights if
        there are any."""
        self.model.eval()
        distributed.broadcast(self.model.buffers())
        means = Means()
        with self.averaged():
            for batch in batches:
                with self._autocast():
                    means.add(self.objective(self.model, distributed.shard(batch.to(self.device))))
        return means.result()

    def use_best(self) -> None:
        """With `early_stop`, put the weights of the best epoch into the model, and into the average."""
        if self.early_stop is not None and self.early_stop.weights is not None:
            self.model.load_state_dict(self.early_stop.weights)
            if self.ema is not None:
                self.ema.restart()

    def averaged(self):
        """A context in which the model holds the averaged weights (`ema`), or its own where there are none."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied()

    def state_dict(self) -> dict:
        """Everything from which `fit` goes on as if it had never stopped, bit for bit, on the same machine.

        With several ranks all of them must call it.
        """
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict() if isinstance(self.objective, torch.nn.Module) else None,
            "update": self._update.state_dict(),
            "critic_update": None if self._critic_update is None else self._critic_update.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "annealers": {name: annealer.state_dict() for name, annealer in self.annealers.items()},
            "annealed": self._annealed,  # of the last step: an evaluation sees it
            "early_stop": None if self.early_stop is None else self.early_stop.state_dict(),
            "generators": [distributed.gather(s.to(self.device)) for s in state.generators(self.device)],
            "epoch_began": self._epoch_began if self._position else None,
            "position": self._position,
            "epoch_steps": self._epoch_steps,
            "means": distributed.gather_object(self.means.state_dict()),
            "unsound": distributed.gather(self._unsound),
            "history": self.history,
            "steps": self.steps,
            "samples": self.samples,
            "skipped": self._skipped,
        }

    def load_state_dict(self, saved: dict) -> None:
        """Go back to where `state_dict` was called, in a trainer that was made with the same arguments.

        Raises:
            ValueError: if the trainers differ in what they have (a critic, an average, ...) or in their ranks.
        """
        ranks = len(saved["unsound"])
        if ranks != distributed.world():
            raise ValueError(f"the state is of {ranks} processes, and here are {distributed.world()}")
        parts = {
            "update": self._update,
            "critic_update": self._critic_update,
            "schedule": self.schedule,
            "ema": self.ema,
            "early_stop": self.early_stop,
        }
        for name, part in parts.items():
            if (saved[name] is None) != (part is None):
                has, lacks = ("trainer", "state") if saved[name] is None else ("state", "trainer")
                raise ValueError(f"the {has} has {name}, and the {lacks} does not")
        self.model.load_state_dict(saved["model"])
        if isinstance(self.objective, torch.nn.Module):
            self.objective.load_state_dict(saved["objective"])
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(saved[name])
        for name, annealer in self.annealers.items():
            annealer.load_state_dict(saved["annealers"][name])
            self._annealed[name].copy_(saved["annealed"][name])
        if self._captured:  # a graph holds the optimizer's tensors of before
            self._step = CapturedStep(self._eager_step)
        rank, device = distributed.rank(), self.device
        self._begin_epoch()
        self.means.load_state_dict(saved["means"][rank], device)
        self._unsound.copy_(saved["unsound"][rank])
        self._epoch_began = saved["epoch_began"]
        self._position, self._epoch_steps = saved["position"], saved["epoch_steps"]
        self.history, self.steps, self.samples = list(saved["history"]), saved["steps"], saved["samples"]
        self._skipped.copy_(saved["skipped"])
        state.set_generators([states[rank].cpu() for states in saved["generators"]], device)


def _critic_name(name: str) -> str:
    return name if name.startswith("critic") else f"critic_{name}"


def _compiled(loss_of: Callable) -> Callable:
    @torch.compile
    def compiled(model, batch):
        return loss_of(model, batch)

    return compiled
