"""The training loop: build roles, resume, step, log, sample, save, stop.

The run directory is the only interface to the outside:

    config.yaml metrics.jsonl events.jsonl best.json control/{stop,save_now,sample_now}
    samples/{teacher,step_000500}/*.mp4 checkpoints/step_000500/ export/
"""

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pipelines.catalog.steps import step_name
from trainers.algorithm import Loss, Rng, Update
from trainers.data.batches import build_data
from trainers.data.order import stream_seed
from trainers.networks.build import build_roles
from trainers.networks.models import Codecs, LoadedModel
from trainers.networks.optimizer import adamw, learning_rate
from trainers.networks.performance import autocast, tune_compute
from trainers.networks.role import follow, lora_norms
from trainers.ranks.ranks import Ranks, any_rank, barrier, mean_over_ranks, shard, whole
from trainers.registry import algorithm_class, load_reward
from trainers.run.checkpoint import (
    best_checkpoint,
    checkpoint_folders,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from trainers.run.export import export_role
from trainers.run.log import SkippedSteps, Tracker, refuse_other_run
from trainers.scoring.reward import HELD_OUT, TRAINED, LatentScore, RewardError
from trainers.settings.roles import Ema, Trainable
from trainers.settings.run import TrainConfig
from trainers.validation.samples import VideoDrawer
from trainers.validation.validator import Validator


class Trainer:
    """One run of one configuration in one directory."""

    def __init__(
        self,
        config: TrainConfig[Any],
        models: Mapping[str, LoadedModel],
        run_dir: Path,
        ranks: Ranks,
    ):
        self.config, self.run_dir, self.ranks = config, run_dir, ranks
        self.tracker = Tracker(run_dir)
        method = algorithm_class(config.method)
        torch.manual_seed(config.seed)  # new adapters start from random weights
        self.roles = build_roles(config.algorithm, models)
        tune_compute(self.roles, config, ranks)
        for role in {id(role.body): role for role in self.roles.values()}.values():
            shard(role.body, role.blocks, ranks, config.parallel.cpu_offload)
        calls = {name: role.call for name, role in self.roles.items()}
        codecs = Codecs(config, ranks.device)
        rewards, own_sampler = rewards_of(config, codecs, ranks), codecs.entry.preset.sampler
        self.algorithm = method(config.algorithm, calls, rewards.get(TRAINED), own_sampler)
        self.optimizers = {
            name: adamw(role.settings, role.trained.values())
            for name, role in self.roles.items()
            if isinstance(role.settings, Trainable)
        }
        self.data = build_data(config, codecs)
        self.validator = None
        if config.validation is not None:
            sampler = VideoDrawer(codecs, run_dir / "samples", ranks, rewards)
            self.validator = Validator(
                config, self.algorithm, self.roles, sampler, self.tracker, ranks
            )
        self.step = 0
        self.figures: dict[str, Tensor] = {}  # the newest of each: not every role moves every step
        self.skipped = SkippedSteps(list(self.optimizers), self.tracker, ranks)
        self.stop_signal = False

    # ---------------------------------------------------------------- the loop

    def train(self) -> bool:
        """Runs until `num_steps` or until asked to stop; returns whether the run is complete."""
        self._prepare_run_dir()
        self._resume()
        if self.validator is not None:
            self.validator.begin()
        with self._signals():
            try:
                self._loop()
            except RewardError as error:  # the trained weights are those of the last whole step
                self._save()
                if self.ranks.is_main:
                    self.tracker.event("reward_failed", step=self.step, reason=str(error))
                raise
        return self._finish()

    def _loop(self) -> None:
        while not self._complete and not self._asked("stop"):
            began = time.perf_counter()
            self.figures |= self.train_step()
            self.step += 1
            self._log(self.figures, time.perf_counter() - began)
            self._validate()
            if self._due(self.config.save_every) or self._asked("save_now"):
                self._save()

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

    # ---------------------------------------------------------------- between steps

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
            self.tracker.metrics(self.step, {**by_name, "step_sec": step_sec})
            left_min = (self.config.num_steps - self.step) * step_sec / 60
            shown = "  ".join(f"{name} {value:.4g}" for name, value in by_name.items())
            total = self.config.num_steps
            print(
                f"step {self.step}/{total}  {shown}  {step_sec:.2f} s  {left_min:.0f} min left",
                flush=True,
            )

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _asked(self, what: str) -> bool:
        """Whether someone touched control/`what` (removed at once) or, to stop, sent a signal."""
        flag = self.run_dir / "control" / what
        asked = self.ranks.is_main and flag.exists()
        asked = any_rank(asked or (what == "stop" and self.stop_signal), self.ranks)
        if asked and self.ranks.is_main:
            flag.unlink(missing_ok=True)
        return asked

    @property
    def _complete(self) -> bool:
        """Whether all steps are done, or validation's patience is at its end."""
        exhausted = self.validator is not None and self.validator.exhausted
        return exhausted or self.step >= self.config.num_steps

    def _validate(self) -> None:
        """Where it is time: draws and measures videos, and saves what is the best so far."""
        settings = self.config.validation
        if self.validator is None or settings is None:
            return
        due = self._due(settings.every) or self.step == self.config.num_steps
        if (due or self._asked("sample_now")) and self.validator.validate(self.step):
            self._save()

    def _save(self) -> None:
        if self._saved_here():
            return
        save_checkpoint(self.run_dir, self.step, self.roles, self.optimizers, self.ranks)
        if self.ranks.is_main:
            if self.validator is not None:
                self.validator.write_best()
            prune_checkpoints(self.run_dir, self.config.keep_checkpoints)
            self.tracker.event("saved", step=self.step)

    # ---------------------------------------------------------------- start and end

    def _prepare_run_dir(self) -> None:
        refuse_other_run(self.run_dir, self.config)
        if self.ranks.is_main:
            (self.run_dir / "control").mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            (self.run_dir / "config.yaml").write_text(text)
            process = {"pid": os.getpid(), "host": socket.gethostname()}
            self.tracker.event("started", num_ranks=self.ranks.num_ranks, **process)
        barrier(self.ranks)

    def _resume(self) -> None:
        """Continues from the newest whole checkpoint, if there is one."""
        folders = checkpoint_folders(self.run_dir)
        if folders:
            self.step = load_checkpoint(folders[-1], self.roles, self.optimizers, self.ranks)
        if self.ranks.is_main:
            self.tracker.forget_after(self.step)
            if self.step:
                self.tracker.event("resumed", step=self.step)
        barrier(self.ranks)

    def _finish(self) -> bool:
        """Saves what is not saved yet and, of a complete run, exports."""
        self._save()
        barrier(self.ranks)
        exported = self._export() if self._complete else {}
        if self.ranks.is_main:
            if self._complete and self.step < self.config.num_steps:
                self.tracker.event("stopped_early", step=self.step)
            kind = "finished" if self._complete else "stopped"
            self.tracker.event(kind, step=self.step, **exported)
        barrier(self.ranks)
        return self._complete

    def _export(self) -> dict[str, int]:
        """Exports the best checkpoint where one is asked for, else the last; returns its step.

        The best one's weights stay in the networks: the last one's are on disk.
        """
        settings, step = self.config.validation, self.step
        best = best_checkpoint(self.run_dir) if settings and settings.export == "best" else None
        if best is not None:
            step = load_checkpoint(best, self.roles, self.optimizers, self.ranks)
        folder = self.run_dir / "export"
        export_role(self.config, self.algorithm, self.roles, folder, self.ranks)
        return {"exported_step": step}

    def _saved_here(self) -> bool:
        folders = checkpoint_folders(self.run_dir)
        return bool(folders) and folders[-1].name == step_name(self.step)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""

        def remember(signum: int, frame: FrameType | None) -> None:
            self.stop_signal = True

        before = {s: signal.signal(s, remember) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def rewards_of(config: TrainConfig[Any], codecs: Codecs, ranks: Ranks) -> dict[str, LatentScore]:
    """The run's rewards by name: the one it trains on, and the one it never does."""
    held_out = config.validation.held_out if config.validation else None
    choices = {TRAINED: config.reward, HELD_OUT: held_out}
    return {
        name: LatentScore(load_reward(choice, ranks.device), choice, codecs.video.vae, ranks)
        for name, choice in choices.items()
        if choice is not None
    }
