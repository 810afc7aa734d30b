"""The training loop: set up, then step, log, validate and save until it is enough.

The folder of the run is the only interface to the outside: trainers/run/folder.py.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.catalog.registry import Registry
from trainers.algorithm import Loss, Rng, Update
from trainers.data.batches import build_data
from trainers.data.order import stream_seed
from trainers.networks.build import build_roles
from trainers.networks.models import Codecs, load_models
from trainers.networks.optimizer import adamw, learning_rate
from trainers.networks.performance import autocast, tune_compute
from trainers.networks.role import follow, lora_norms
from trainers.ranks.ranks import Ranks, mean_over_ranks, shard, whole
from trainers.registry import algorithm_class, load_reward
from trainers.run.folder import RunFolder
from trainers.run.log import SkippedSteps
from trainers.run.run import Run
from trainers.scoring.reward import HELD_OUT, TRAINED, LatentScore, RewardError
from trainers.settings.roles import Ema, Trainable
from trainers.settings.run import TrainConfig
from trainers.validation.samples import VideoDrawer
from trainers.validation.validator import Validator


class Trainer:
    """One run of one configuration in one folder."""

    def __init__(self, config: TrainConfig[Any], registry: Registry, run_dir: Path, ranks: Ranks):
        self.config, self.ranks = config, ranks
        # Networks: one for each role, sharded over the ranks.
        entry, models = registry.entry(config.model), load_models(config, registry)
        torch.manual_seed(config.seed)  # new adapters start from random weights
        self.roles = build_roles(config.algorithm, models)
        tune_compute(self.roles, config, ranks)
        for role in {id(role.body): role for role in self.roles.values()}.values():
            shard(role.body, role.blocks, ranks, config.parallel.cpu_offload)
        # The method over them, with its reward, and an optimizer for each role that is trained.
        calls = {name: role.call for name, role in self.roles.items()}
        codecs = Codecs(entry, ranks.device)
        rewards = rewards_of(config, codecs, ranks)
        given = config.algorithm, calls, rewards.get(TRAINED), entry.preset.sampler
        self.algorithm = algorithm_class(config.method)(*given)
        self.optimizers = {
            name: adamw(role.settings, role.trained.values())
            for name, role in self.roles.items()
            if isinstance(role.settings, Trainable)
        }
        # What it is trained on, what it writes, and what measures it meanwhile.
        self.data = build_data(config, codecs)
        built = self.algorithm, self.roles, self.optimizers
        run = Run(config, registry, entry, *built, ranks)
        self.folder = RunFolder(run_dir, run)
        self.validator = None
        if config.validation is not None:
            drawer = VideoDrawer(codecs, run_dir / "samples", ranks, rewards)
            self.validator = Validator(run, drawer, self.folder.tracker)
        self.skipped = SkippedSteps(list(self.optimizers), self.folder.tracker, ranks)
        self.step = 0
        self.figures: dict[str, Tensor] = {}  # the newest of each: not every role moves every step

    # ---------------------------------------------------------------- the loop

    def train(self) -> bool:
        """Runs until `num_steps` or until asked to stop; returns whether the run is complete."""
        self.folder.begin()
        self.step = self.folder.resume()
        if self.validator is not None:
            self.validator.begin()
        with self.folder.signals():
            try:
                self._loop()
            except RewardError as error:  # the trained weights are those of the last whole step
                self._save()
                if self.ranks.is_main:
                    reason = str(error)
                    self.folder.tracker.event("reward_failed", step=self.step, reason=reason)
                raise
        self._save()
        self.folder.end(self.step, self._complete)
        return self._complete

    def _loop(self) -> None:
        while not self._complete and not self.folder.is_asked("stop"):
            began = time.perf_counter()
            self.figures |= self.train_step()
            self.step += 1
            self._log(self.figures, time.perf_counter() - began)
            self._validate()
            if self._due(self.config.save_every) or self.folder.is_asked("save_now"):
                self._save()

    @property
    def _complete(self) -> bool:
        """Whether all steps are done, or validation's patience is at its end."""
        exhausted = self.validator is not None and self.validator.exhausted
        return exhausted or self.step >= self.config.num_steps

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _validate(self) -> None:
        """Where it is time: draws and measures videos, and saves what is the best so far."""
        settings = self.config.validation
        if self.validator is None or settings is None:
            return
        due = self._due(settings.every) or self.step == self.config.num_steps
        if (due or self.folder.is_asked("sample_now")) and self.validator.validate(self.step):
            self._save()

    def _save(self) -> None:
        self.folder.save(self.step, self.validator.best() if self.validator else None)

    # ---------------------------------------------------------------- one step

    def train_step(self) -> dict[str, Tensor]:
        """Every update of the method once, then the moving averages; returns figures to log."""
        figures: dict[str, Tensor] = {}
        for number, update in enumerate(self.algorithm.updates(self.step)):
            figures |= self._update(update, number)
        return figures

    def _update(self, update: Update, number: int) -> dict[str, Tensor]:
        """Accumulates one role's gradients over the micro-batches and steps its optimizer.

        Then the roles that follow this one move.
        """
        role, optimizer = self.roles[update.role], self.optimizers[update.role]
        settings = role.settings
        assert isinstance(settings, Trainable)
        num_micro = self.config.accumulation_steps
        # Gradients: the mean over micro-batches, synchronised between ranks with the last one.
        losses: list[Loss] = []
        prompts: list[str] = []  # of the micro-batches whose loss is not finite
        for micro in range(num_micro):
            stream = micro * self.ranks.num_data_ranks + self.ranks.data_rank
            num_streams = num_micro * self.ranks.num_data_ranks
            batch = self.data.batch(self.step, stream, num_streams).to(self.ranks.device)
            if self.ranks.num_ranks > 1:
                role.body.set_requires_gradient_sync(micro == num_micro - 1)  # type: ignore[operator]
            with autocast(self.config.precision, self.ranks):
                loss = update.loss(batch, self._rng(stream, number))
            # sharding takes the mean over all ranks, but a context group's gradients are a sum
            (loss.value * self.ranks.context / num_micro).backward()
            losses.append(loss)
            if not torch.isfinite(loss.value):
                prompts += batch.prompts
        # The step, unless a gradient is not finite; then what follows this role.
        norm = whole(nn.utils.clip_grad_norm_(role.trained.values(), settings.max_grad_norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step, self.config.num_steps)
        if self.skipped.may_step(update.role, self.step, norm, prompts):
            optimizer.step()
            self._move_followers(update.role)
        for each in self.optimizers.values():  # a loss may reach parameters that it does not train
            each.zero_grad(set_to_none=True)
        return self._figures(update.role, losses, norm)

    def _move_followers(self, moved: str) -> None:
        """Moving averages of a role, and roles that are pulled toward it."""
        for role in self.roles.values():
            settings = role.settings
            if isinstance(settings, Ema) and settings.of == moved:
                started = self.step >= settings.start_step
                follow(role, self.roles[moved], settings.decay if started else 0.0)
            pull = settings.pull if isinstance(settings, Trainable) else None
            if pull is not None and pull.toward == moved:
                follow(role, self.roles[moved], pull.decay)

    def _rng(self, stream: int, update: int) -> Rng:
        """Streams that depend on (seed, step, update, stream) and on nothing that ran before."""
        seed = stream_seed(self.config.seed, self.step, 2**31 + update)
        shared, local = stream_seed(seed, 0, 0), stream_seed(seed, 1, stream)
        torch.manual_seed(local)  # for dropout, which draws from the global stream
        return Rng(torch.Generator().manual_seed(local), torch.Generator().manual_seed(shared))

    def _figures(self, role: str, losses: list[Loss], norm: Tensor) -> dict[str, Tensor]:
        figures = {"loss": torch.stack([loss.value.detach() for loss in losses]).mean()}
        for name in losses[0].metrics:
            figures[name] = torch.stack([loss.metrics[name] for loss in losses]).mean()
        figures["grad_norm"] = norm
        figures["num_skipped"] = norm.new_tensor(self.skipped.num_skipped[role])
        return {f"{role}/{name}": value for name, value in figures.items()}

    def _log(self, figures: dict[str, Tensor], step_sec: float) -> None:
        if self.step % self.config.log_every and self.step != self.config.num_steps:
            return
        figures = figures | lora_norms(self.roles)
        values = mean_over_ranks(torch.stack([v.float() for v in figures.values()]), self.ranks)
        if self.ranks.is_main:
            by_name = dict(zip(figures, values.tolist(), strict=True))
            self.folder.tracker.metrics(self.step, {**by_name, "step_sec": step_sec})
            left_min = (self.config.num_steps - self.step) * step_sec / 60
            shown = "  ".join(f"{name} {value:.4g}" for name, value in by_name.items())
            total = self.config.num_steps
            print(
                f"step {self.step}/{total}  {shown}  {step_sec:.2f} s  {left_min:.0f} min left",
                flush=True,
            )


def rewards_of(config: TrainConfig[Any], codecs: Codecs, ranks: Ranks) -> dict[str, LatentScore]:
    """The run's rewards by name: the one it trains on, and the one it never does."""
    held_out = config.validation.held_out if config.validation else None
    choices = {TRAINED: config.reward, HELD_OUT: held_out}
    return {
        name: LatentScore(load_reward(choice, ranks.device), choice, codecs.video.vae, ranks)
        for name, choice in choices.items()
        if choice is not None
    }
