"""The folder of a run, which is its only interface to the outside.

config.yaml metrics.jsonl events.jsonl best.json control/{stop,save_now,sample_now}
samples/{teacher,step_000500}/*.mp4 checkpoints/step_000500/ export/ exports/step_000500/
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import yaml

from pipelines.catalog.steps import step_name
from trainers.ranks.ranks import any_rank, barrier
from trainers.run.checkpoint import (
    best_checkpoint,
    checkpoint_folder,
    checkpoint_folders,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    write_best,
)
from trainers.run.export import export_student
from trainers.run.log import Tracker, require_same_run
from trainers.run.run import Run


class RunFolder:
    """Keeps the folder of one run. Every rank takes part in every call; the main one writes."""

    def __init__(self, path: Path, run: Run):
        self.path, self.run, self.ranks = path, run, run.ranks
        self.tracker = Tracker(path)
        self.stop_signal = False

    def begin(self) -> None:
        """Writes the settings. ValueError where the folder is another run's."""
        config = self.run.config
        require_same_run(self.path, config)
        if self.ranks.is_main:
            (self.path / "control").mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (self.path / "config.yaml").write_text(text)
            process = {"pid": os.getpid(), "host": socket.gethostname()}
            self.tracker.event("started", num_ranks=self.ranks.num_ranks, **process)
        barrier(self.ranks)

    def resume(self) -> int:
        """Loads the newest whole checkpoint, if there is one; returns the number of its steps."""
        folders = checkpoint_folders(self.path)
        step = load_checkpoint(folders[-1], self.run) if folders else 0
        if self.ranks.is_main:
            self.tracker.forget_after(step)
            if step:
                self.tracker.event("resumed", step=step)
        barrier(self.ranks)
        return step

    def is_asked(self, what: str) -> bool:
        """Whether someone touched control/`what` (removed at once) or, to stop, sent a signal."""
        flag = self.path / "control" / what
        asked = self.ranks.is_main and flag.exists()
        asked = any_rank(asked or (what == "stop" and self.stop_signal), self.ranks)
        if asked and self.ranks.is_main:
            flag.unlink(missing_ok=True)
        return asked

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C ask for a stop after the current step, with a checkpoint."""

        def remember(signum: int, frame: FrameType | None) -> None:
            self.stop_signal = True

        before = {s: signal.signal(s, remember) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def save(self, step: int, best: tuple[int, float] | None) -> None:
        """Saves a checkpoint, unless there is one, and removes those that need not be kept.

        `best` are step and score of the best so far, where checkpoints are ranked.
        """
        folders = checkpoint_folders(self.path)
        if folders and folders[-1].name == step_name(step):
            return
        save_checkpoint(self.path, step, self.run)
        if self.ranks.is_main:
            if best is not None:
                write_best(self.path, best)
            prune_checkpoints(self.path, self.run.config.keep_checkpoints)
            self.tracker.event("saved", step=step)

    def end(self, step: int, complete: bool) -> None:
        """Exports a complete run; to be called when the last step is saved."""
        barrier(self.ranks)
        exported = {"exported_step": self._export(step)} if complete else {}
        if self.ranks.is_main:
            if complete and step < self.run.config.num_steps:
                self.tracker.event("stopped_early", step=step)
            self.tracker.event("finished" if complete else "stopped", step=step, **exported)
        barrier(self.ranks)

    def _export(self, step: int) -> int:
        """Exports the best checkpoint where one is asked for, else the last; returns its step.

        The best one's weights stay in the networks: the last one's are on disk.
        """
        settings = self.run.config.validation
        best = best_checkpoint(self.path) if settings and settings.export == "best" else None
        if best is not None:
            step = load_checkpoint(best, self.run)
        export_student(self.run, self.path / "export")
        return step

    def export_step(self, step: int) -> Path:
        """Exports the student of one checkpoint, which the registry calls RUN@STEP, to a folder.

        ValueError where the run has no such checkpoint.
        """
        weights_only = replace(self.run, optimizers={})
        load_checkpoint(checkpoint_folder(self.path, step), weights_only)
        folder = self.path / "exports" / step_name(step)
        if self.ranks.is_main:
            folder.parent.mkdir(exist_ok=True)
        export_student(self.run, folder)
        return folder
