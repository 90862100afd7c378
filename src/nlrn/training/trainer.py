"""Training: one visible loop over a recipe, the same in one process, under torchrun, on CPU and on CUDA.

What a step computes follows from the recipe, the seed and the step only (the clock decides when to stop
and where the decay branch begins, and that is recorded), so a resumed run gives the same bytes on a CPU.
On CUDA the noise is drawn on the device: the same sigmas and patches as on a CPU, other noise.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrn.errors import CheckpointError, ConfigError, TrainingError
from nlrn.io.datasets import data_root
from nlrn.models.checkpoint import save_model, to_device
from nlrn.models.nlrn import NLRN, NLRNConfig, on_unit_scale
from nlrn.ops.cpu import say_if_missing
from nlrn.system.atomic import remove_leftovers
from nlrn.system.hardware import hardware_bf16
from nlrn.training import state
from nlrn.training.budget import Budget
from nlrn.training.config import TrainConfig, read_recipe
from nlrn.training.data import Batches
from nlrn.training.distributed import Processes, joined
from nlrn.training.growth import grown
from nlrn.training.logging import Pace, TrainingLog
from nlrn.training.norms import freeze_norms, measure_norms, sync_norms
from nlrn.training.optim import batch_loss, clip_gradients, compile_states, make_optimizer, start_embeddings
from nlrn.training.starting import start_from
from nlrn.training.stopping import Stopped, StopRequests
from nlrn.training.validation import Validation

LOOKS = 10  # steps between two readings of the loss where one waits for the device or for other processes


def train_from_recipe(
    recipe: str | Path, *, steps: int | None = None, decay: float | None = None, **options: Any
) -> Path:
    """Train by the recipe in a TOML file and return the path of the weights file.

    steps, decay: override the recipe's. options: those of nlrn.training.trainer.train. Raises ConfigError, InputError,
    CheckpointError, TrainingError.
    """
    config = read_recipe(recipe)
    changes = {name: value for name, value in (("steps", steps), ("decay", decay)) if value is not None}
    return train(
        dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **changes)),  # type: ignore[arg-type]
        **options,
    )


def train(
    config: TrainConfig,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    cpu_minutes: float | None = None,
    tensorboard: bool = False,
    data: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Train by a recipe and return the path of the weights file.

    output: the run folder, by default runs/<recipe name>. resume: resume from the newest verified state; a run
    that had ended resumes from its state before the decay when there are more steps to make, as does a folder that
    holds only that state. minutes: stop by the clock, the last part of them spent on the decay branch (a resumed run
    that is in its decay already finishes it). cpu_minutes: the same by the CPU time of the process divided by its
    threads, so that neither a pause nor other programs shorten the run. Ctrl-C and SIGTERM end it after the current
    step, with its state saved. Raises ConfigError, InputError, CheckpointError, UnfinishedError where the clock ended
    the run within its warm-up, or TrainingError when the loss stops being finite (the last good state is kept).
    """
    budget = Budget(minutes, cpu_minutes)
    folder = Path(output or Path("runs") / config.name)
    with joined() as processes, ExitStack() as kept:
        leads = processes.leads
        with processes.as_one():
            trainer = Trainer(config, folder, data_root(data), processes, budget)
            if leads:
                kept.enter_context(state.prepared(folder, create=not resume))
            trainer.start(resume)
        trainer.align()
        log = TrainingLog(folder, show=leads and not quiet, keep=leads, tensorboard=leads and tensorboard)
        with log, StopRequests() as trainer.requests:
            try:
                trainer.run(log)
                return trainer.finish(log)
            except Stopped:
                trainer.save()
                log.say(f"stopped at step {trainer.step}; the state is saved, --resume continues")
        raise trainer.requests.ended()


class Trainer:
    """A training run: `start` it (fresh or resumed), `run` it, `finish` it. Raises ConfigError, InputError."""

    def __init__(
        self, config: TrainConfig, folder: Path, data: Path, processes: Processes, budget: Budget | None = None
    ) -> None:
        smallest = min(stage.batch // stage.accumulate for stage in config.stages)
        if smallest < processes.world:
            raise ConfigError(f"{processes.world} processes cannot share a batch, or a part of one, of {smallest}")
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.budget, self.requests = budget or Budget(), StopRequests()
        self.config, self.folder, self.processes = config, folder, processes
        self.device = device = processes.device
        if device.type == "cpu" and processes.leads:
            say_if_missing()
        torch.manual_seed(config.seed)
        self._build(config.network(0))
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and hardware_bf16(device))
        self.batches = Batches(config, data, processes)
        self.validation = Validation(config, data, device)
        self.pace, self.norm_batches = Pace(config), config.norm_batches
        self.health = torch.zeros((), device=device)  # the sum of what must be finite, checked now and then
        self.step = self.first = 0  # first: where this slice began
        self._plan()

    # -- state ---------------------------------------------------------------------------------------------

    def _build(self, network: NLRNConfig) -> None:
        """A network, the average of its weights and their optimiser."""
        self.model = to_device(NLRN(network), self.device)
        start_embeddings(self.model, self.config.embedding_gain, self.config.embedding_tied)
        sync_norms(self.model, self.processes)
        if self.config.compile and self.device.type == "cuda":
            compile_states(self.model)
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = make_optimizer(self.config, self.model)

    def _plan(self) -> None:
        """Where the decay branch of a slice that ends by steps lies."""
        schedule = self.config.schedule
        self.end, self.decay_steps, self.by_steps = schedule.steps, 0, True
        if self.end < self.step:
            raise ConfigError(f"this run is at step {self.step} already, beyond the {self.end} asked for")
        if schedule.kind == "slices":
            self.decay_steps = min(int(schedule.decay * (self.end - self.first)), self.end - self.step)
        self.decay_start = self.end - self.decay_steps

    def meta(self) -> dict[str, Any]:
        """The metadata of a state. `seconds` is the time it took so far; no step uses it."""
        names = ("step", "first", "decay_start", "decay_steps", "end")
        return {name: getattr(self, name) for name in names} | {
            "world": self.processes.world,
            "steps": self.config.schedule.steps,
            "decay": self.config.schedule.decay,
            "recipe": self.config.digest(),
            "seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        """Seconds spent up to the present step, over all slices."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def weights(self) -> Path:
        """The weights file of the run."""
        return self.folder / f"{self.config.name}.safetensors"

    def start(self, resume: bool) -> None:
        """Begin afresh, or `resume` (see `train`). Raises ConfigError, CheckpointError."""
        if not resume and state.holds_a_run(self.folder):
            raise ConfigError(f"{self.folder} holds a run already: resume it (--resume), or give another folder")
        if not resume and self.weights.exists():
            raise ConfigError(f"{self.weights} exists already: give another folder")
        if resume:
            self._restore(*state.to_resume(self.folder, self.weights, self.config.schedule))
        elif self.config.start is not None:
            start_from(self.model, self.config.start.from_, statistics=self.config.freeze == 0)
            self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        if self.processes.leads:
            remove_leftovers(self.folder)

    def align(self) -> None:
        """Make all processes begin where rank 0 does. Raises CheckpointError where one found another state."""
        with self.processes.as_one():
            if self.processes.agree(self.step) != self.step:
                raise CheckpointError(f"not all processes find the same state in {self.folder}: is it one folder?")
        self.processes.follow(self.model.state_dict().values())

    def _restore(self, found: state.FoundState, later: bool) -> None:
        """Continue from a state; `later`: as the beginning of another slice."""
        path, meta = found.path, found.meta
        if meta["recipe"] != self.config.digest():
            raise ConfigError(f"{path} belongs to another recipe; only steps and decay may change on the way")
        if meta["world"] != self.processes.world and self.processes.leads:
            state.warn_of_rounding(path, meta["world"], self.processes.world)
        self._build(self.config.network(max(0, found.step - 1)))  # a stage's first step is made after it has grown
        state.unpack(found.tensors, self.model, self.ema, self.optimizer)
        self.step, self.seconds_before = found.step, meta.get("seconds", 0.0)
        self.first, self.by_steps = self.step if later else meta.get("first", 0), False
        schedule = self.config.schedule
        planned = meta.get("steps", meta["end"]), meta.get("decay", schedule.decay)
        if later or (planned != (schedule.steps, schedule.decay) and self.step <= meta["decay_start"]):
            self._plan()
        else:  # exactly the plan from before
            self.decay_start, self.decay_steps, self.end = (meta[k] for k in ("decay_start", "decay_steps", "end"))
            self.by_steps = self.step < self.decay_start  # the clock places a decay at its own step

    def save(self) -> None:
        """Rank 0 writes the rolling state, and the state before the decay when the decay begins."""
        self._check_health()
        if self.processes.leads:
            tensors, meta = state.pack(self.model, self.ema, self.optimizer), self.meta()
            if self.step == self.decay_start:
                state.write_state(self.folder / state.BEFORE_DECAY, tensors, meta)
            state.save_rolling(self.folder, tensors, meta)
        self.saved = time.monotonic()

    def _check_health(self) -> None:
        if not math.isfinite(float(self.health)):
            last = f"at step {self.step - 1}, or a little before"
            raise TrainingError(f"the loss or its gradient is not finite {last}; the last good state is kept")

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, log: TrainingLog) -> None:
        """Train until the planned end or the end of the time, decay included. Raises TrainingError, UnfinishedError."""
        if self.step >= self.end:
            log.say(state.how_ended(self.end, self.config.schedule.steps))
            return
        looks = 1 if self.device.type == "cpu" and self.processes.world == 1 else LOOKS
        began, self.saved, since = self.step, -math.inf, self.step
        losses = torch.zeros((), device=self.device)
        self.model.train()
        mark = self.budget.now()
        while self.step < self.end:
            look = (self.step - began) % looks == 0
            if (look or self.processes.world == 1) and self.processes.agree(self.requests.number):
                raise Stopped
            if look and self.step > began and self.budget.limited:
                self._mind_the_clock()
            due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
            if self.step < self.end and (due or self.step == self.decay_start):
                self.save()
            if self.step == self.end:
                break
            if self._enter_stage(log):
                mark = self.budget.now()
            loss, norm = self.train_step()
            losses += loss
            self.step += 1
            if (self.step - began) % looks == 0 or self.step == self.end:
                self._report(log, losses, float(norm), since, self.budget.now() - mark)
                since, mark = self.step, self.budget.now()
                losses.zero_()
            if self.step % self.config.validate_every == 0 and self.step < self.end:
                self._validate(log, self.model)
                mark = self.budget.now()
        self.save()
        self.budget.check_warmup(self.config, self.step)

    def _report(self, log: TrainingLog, losses: Tensor, norm: float, since: int, seconds: float) -> None:
        """Display and record the steps from `since` on."""
        self._check_health()
        count = self.step - since
        self.pace.add(since, self.step, seconds)
        loss = float(self.processes.sum(losses)) / count
        left = min(self.pace.seconds(self.step, self.end), max(0.0, self.budget.left))
        lr = self.config.lr(self.step - 1, self.decay_start, self.decay_steps)
        log.steps(self.step, self.end, loss=loss, count=count, seconds=seconds, lr=lr, norm=norm, left=left)

    def _validate(self, log: TrainingLog, model: NLRN, weights: str = "raw") -> None:
        """Validate on rank 0 only; the others wait for it at the next step."""
        if self.processes.leads:
            mark = self.budget.now()
            with self.requests.beside_the_steps():
                log.validation(self.step, self.validation(model), weights)
            self.pace.aside = self.budget.now() - mark

    def _enter_stage(self, log: TrainingLog) -> bool:
        """Grow and freeze where the present step is the first of a stage that does; whether it is."""
        network = self.config.network(self.step)
        if network != self.model.config:
            tensors = grown(state.pack(self.model, self.ema, self.optimizer), network.states)
            self._build(network)
            state.unpack(tensors, self.model, self.ema, self.optimizer)
            log.say(f"step {self.step}: {network.states} states, window {network.window or 'of the whole image'}")
        if self.step == self.config.freeze:
            self._freeze(log)
        return self.step == self.config.stage(self.step).start

    def _freeze(self, log: TrainingLog) -> None:
        """The averaged weights and their statistics take over; the statistics stay from here on."""
        self.model.load_state_dict(self.averaged_model().state_dict())
        self.processes.follow(self.model.buffers())  # each process has counted the batches that it measured
        log.say(f"step {self.step}: the batch norms are frozen")

    @property
    def frozen(self) -> bool:
        """Whether the weights were trained under the statistics that they have, or start from those that were."""
        freeze = self.config.freeze
        return freeze is not None and (self.step > freeze or (freeze == 0 and self.config.start is not None))

    def _mind_the_clock(self) -> None:
        """Begin the decay when its share is what remains of the time, with as many steps as fit.

        One that began earlier, because its share is what remains of the steps, gets as many as fit, too.
        """
        begun, schedule = self.step >= self.decay_start, self.config.schedule
        if begun and not self.by_steps:
            return
        share = 1.0 if begun else schedule.decay if schedule.kind == "slices" else 0.0
        batches = 0.0 if self._measured else self.config.norm_batches / self.processes.world
        limit = schedule.steps - self.step
        fitting = self.processes.agree(self.budget.decay_steps(self.pace, self.step, share, limit, batches))
        if begun:
            self.end = self.step + fitting
            self.decay_steps = self.end - self.decay_start
        elif fitting >= 0:
            self.decay_start, self.decay_steps, self.by_steps = self.step, fitting if share else 0, False
            self.end = self.step + self.decay_steps

    @property
    def _measured(self) -> bool:
        """Whether the weights that the run ends with need no new statistics."""
        return self.frozen or self.config.ema == 0

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One step of the optimiser: this process's part of the loss, and the gradient's norm before clipping.

        Both stay on the device, and nothing here waits for it.
        """
        stage = self.config.stage(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * self.config.lr(self.step, self.decay_start, self.decay_steps)
        if stage.frozen:
            freeze_norms(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for part in range(stage.accumulate):
            batch = self.batches(self.step, part)
            mean = batch_loss(self.model, batch, self.config, self._autocast)
            share = mean * (len(batch.clean) / stage.batch)  # shares may differ in size: their sum is the mean of all
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        self.processes.sum_all([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = clip_gradients(list(self.model.parameters()), self.config.optim)
        self.health += loss + norm
        self.optimizer.step()
        self._average()
        return loss, norm

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        """The exponential moving average of the weights, quicker at the start."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.ema.values()), [parameters[name] for name in self.ema], 1 - decay)

    # -- the end -------------------------------------------------------------------------------------------

    def finish(self, log: TrainingLog) -> Path:
        """Write the averaged weights, their statistics recomputed, as <run folder>/<name>.safetensors."""
        if not self._measured:
            count = self.budget.batches(self.pace, self.step, self.config.norm_batches, self.processes.world)
            self.norm_batches = self.processes.agree(count)
            if self.norm_batches < self.config.norm_batches:
                log.say(f"a short run: statistics of {self.norm_batches} batches, not {self.config.norm_batches}")
        averaged = self.averaged_model()
        self._validate(log, averaged, "averaged")
        if self.processes.leads:
            origin = state.provenance(self.config, self.step, self.seconds, self.device, self.processes.world)
            save_model(self.weights, on_unit_scale(averaged, self.config.image_range), origin)
        self.processes.wait()
        return self.weights

    def averaged_model(self) -> NLRN:
        """A model of the averaged weights, under batch-norm statistics that were measured with them.

        Averaged weights under the statistics of other weights lose up to 0.16 dB. Frozen batch norms keep the
        statistics that the weights were trained under. Without averaging (ema = 0) it is a copy of the model.
        """
        model = to_device(NLRN(self.model.config), self.device)
        model.load_state_dict(self.model.state_dict())
        if self.config.ema > 0:
            model.load_state_dict(self.ema, strict=False)
            if not self.frozen:
                self.measure_statistics(model)
        return model.eval()

    def measure_statistics(self, model: NLRN) -> None:
        """Measure over `norm_batches` batches, each a whole one: the number of processes makes no difference."""
        count = self.norm_batches
        mine = range(self.processes.rank, count, self.processes.world)
        batches = (self.batches(self.step + i, whole=True) for i in mine)
        with self.requests.beside_the_steps():
            measure_norms(model, batches, len(mine) / count, self.processes, self._autocast())
