"""The queue of training runs and what one can do to a run. The only writer of queue.json.

Every change is made under one lock file, in files that are replaced whole, so that two studios on
one folder never start a run twice, and whatever is killed leaves a state that the next turn sets
right. The runs themselves need no studio: `studio.runs.wrapper` looks after each.
"""

import logging
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from filelock import FileLock

from studio.runs import control, slurm
from studio.runs.files import CONFIG, JOB, LAUNCH, read_json, write_json, write_text
from studio.runs.launch import Devices, build_launch
from studio.runs.listing import (
    QUEUE,
    Run,
    free_name,
    is_name,
    list_runs,
    read_launch,
    read_queue,
    read_tree,
    run_folder,
)
from studio.runs.status import ALIVE, NOT_STARTED, State, Status

POLL_SEC = 1.0
SLURM_SEC = 10.0  # between two questions to Slurm, which answers all its users
GRACE_SEC = 600.0  # of a stop: a step and a checkpoint of a large model take minutes
TRASH = ".trash"
ENDED: tuple[State, ...] = ("finished", "stopped", "failed", "lost")

log = logging.getLogger(__name__)


class Generation(Protocol):
    """What makes clips on the same devices."""

    def lend(self, devices: frozenset[str]) -> None:
        """Makes clips on none of these devices any more, and on all others again."""

    def has_left(self, device: str) -> bool:
        """Whether no process of it is on the device."""


class Supervisor:
    """All runs of one folder. Every method that takes a name refuses one that is no run."""

    def __init__(self, runs_dir: Path, generation: Generation | None = None):
        runs_dir.mkdir(parents=True, exist_ok=True)
        self.runs_dir = runs_dir.resolve()
        self._generation = generation
        self._lock = FileLock(self.runs_dir / ".lock")
        self._wrappers: list[subprocess.Popen[bytes]] = []  # to be asked, else they stay zombies
        self._asked_slurm = -SLURM_SEC
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def start(self) -> None:
        """Sets right what an earlier studio left, then looks after the runs until `close`."""
        self._turn()
        self._thread.start()

    def close(self) -> None:
        """Looks after the runs no longer; they go on."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(POLL_SEC):
            self._turn()

    def _turn(self) -> None:
        try:
            self.poll()
        except Exception:  # the queue must outlive one bad turn, such as a full disk
            log.exception("the queue of runs could not advance; trying again")

    def poll(self) -> None:
        """One turn: ends what is left of lost runs, lends out devices, starts what may start."""
        jobs = self._ask_slurm()
        with self._lock:
            self._wrappers = [wrapper for wrapper in self._wrappers if wrapper.poll() is None]
            for run in self.runs():
                number = job_number(run)
                if number in jobs:
                    control.follow(run.folder, jobs[number])
                elif number is None:
                    if run.state == "stopping" and control.is_overdue(run.folder):
                        control.end(run.folder)
                    control.settle(run.folder)
            self._start_ready()

    def _ask_slurm(self) -> dict[str, slurm.SlurmJob | None]:
        """What Slurm says about the jobs of living runs, if it is time to ask; else nothing."""
        numbers = [number for run in self.runs() if (number := job_number(run))]
        if not numbers or time.monotonic() < self._asked_slurm + SLURM_SEC:
            return {}
        self._asked_slurm = time.monotonic()
        try:
            return slurm.ask(numbers)
        except ValueError as error:
            log.warning("%s; asking again", error)
            return {}

    def runs(self) -> list[Run]:
        """Living ones first, then the queue in its order, then the others, newest first."""
        return list_runs(self.runs_dir)

    def run(self, name: str) -> Run:
        run_folder(self.runs_dir, name)
        return next(run for run in self.runs() if run.name == name)

    # The queue

    def submit(
        self,
        tree: Mapping[str, Any],
        devices: Devices,
        after: str | None = None,
        first: bool = False,
    ) -> str:
        """Makes a run of a valid configuration and queues it, last or `first`; returns its name.

        It starts once its devices are free and the run `after` which it comes is finished.
        ValueError where the name cannot be used, or a device or `after` is not there.
        """
        if not is_name(tree["name"]):
            raise ValueError(
                "name: use up to 64 letters, digits and . _ -, a letter or digit first"
            )
        folder = self.runs_dir / tree["name"]
        if after is not None:
            run_folder(self.runs_dir, after)
        launch = build_launch(folder, devices, after)
        with self._lock:
            if folder.exists():
                raise ValueError(f"name: there is a run {folder.name} already; choose another name")
            folder.mkdir()
            write_json(folder / LAUNCH, launch.model_dump(mode="json"))
            if launch.slurm is not None:
                slurm.write_script(folder, launch.slurm)
            write_text(folder / CONFIG, yaml.safe_dump(dict(tree), sort_keys=False))
            self._enqueue(folder, first)
        return folder.name

    def resume(self, name: str, devices: Sequence[str] | None = None, first: bool = False) -> None:
        """Queues an ended run again; it continues from its newest checkpoint.

        Where it was, on these devices or in Slurm, unless others are given: a run from a shell
        needs that. ValueError where it has not ended or is finished.
        """
        with self._lock:
            run = self._require(name, ("stopped", "failed", "lost"))
            had = run.slurm or run.devices
            if not devices and not had:
                raise ValueError(f"devices: {name} was started from a shell; choose its devices")
            launch = build_launch(run.folder, devices or had)
            write_json(run.folder / LAUNCH, launch.model_dump(mode="json"))
            self._enqueue(run.folder, first)

    def move(self, name: str, places: int) -> None:
        """Changes the place of a queued run: -1 is one place sooner."""
        with self._lock:
            self._require(name, ("queued",))
            queue = self._queue()
            place = max(0, queue.index(name) + places)
            queue.remove(name)
            queue.insert(place, name)
            self._write_queue(queue)

    def unqueue(self, name: str) -> None:
        """Takes a run out of the queue; it is stopped then, and can be resumed."""
        with self._lock:
            run = self._require(name, ("queued",))
            self._write_queue([other for other in self._queue() if other != name])
            control.write_exit(run.folder, Status("stopped", NOT_STARTED, None))

    def _queue(self) -> list[str]:
        return read_queue(self.runs_dir)

    def _write_queue(self, names: Sequence[str]) -> None:
        write_json(self.runs_dir / QUEUE, list(names))

    def _enqueue(self, folder: Path, first: bool) -> None:
        queue = [name for name in self._queue() if name != folder.name]
        self._write_queue([folder.name, *queue] if first else [*queue, folder.name])
        control.clear(folder)

    def _start_ready(self) -> None:
        runs = self.runs()
        self._write_queue([run.name for run in runs if run.state == "queued"])
        ready = [run for run in runs if run.state == "queued" and not run.waits_for]
        users = [run for run in runs if run.state in ALIVE] + ready
        self._lend({device for run in users for device in run.devices})
        for run in ready:
            if all(self._is_free(device) for device in run.devices):
                self._start(run.folder)

    def _start(self, folder: Path) -> None:
        launch = read_launch(folder)
        try:
            if launch is not None and launch.slurm is not None:
                control.submit(folder, launch)
            else:
                self._wrappers.append(control.start(folder))
        except OSError:  # no space, no more processes: it is tried again, and others need not wait
            log.exception("%s could not be started", folder.name)

    def _lend(self, devices: set[str]) -> None:
        """Lends out devices, but no CPU: clips and one run at a time share it."""
        if self._generation is not None:
            self._generation.lend(frozenset(devices - {"cpu"}))

    def _is_free(self, device: str) -> bool:
        return self._generation is None or device == "cpu" or self._generation.has_left(device)

    # A run

    def save_now(self, name: str) -> None:
        """Asks for a checkpoint after this step. ValueError where the run has no process."""
        control.ask(self._require(name, ALIVE).folder, "save_now")

    def sample_now(self, name: str) -> None:
        """Asks for videos after this step. ValueError where no process runs, or it draws none."""
        run = self._require(name, ALIVE)
        if read_tree(run.folder).get("validation") is None:
            raise ValueError(f"validation: {name} has none, so it cannot draw; set it in a clone")
        control.ask(run.folder, "sample_now")

    def stop(self, name: str, grace_sec: float = GRACE_SEC) -> None:
        """Stops after this step, with a checkpoint.

        If that takes longer than the grace, the training gets SIGTERM; after another, it is killed.
        ValueError where the run has no process.
        """
        with self._lock:
            control.ask_to_stop(self._require(name, ALIVE).folder, grace_sec)

    def force_stop(self, name: str) -> None:
        """Kills the run with all its processes, within seconds; what is not saved is lost.

        ValueError where the run has no process.
        """
        with self._lock:
            folder = self._require(name, ALIVE).folder
            control.ask_to_stop(folder, grace_sec=0)
            control.end(folder)
            control.settle(folder)

    def clone(self, name: str) -> tuple[dict[str, Any], Devices]:
        """The settings of a run under a name that is free, and its devices. Makes nothing."""
        run = self.run(name)
        tree = read_tree(run.folder) | {"name": free_name(self.runs_dir, name)}
        return tree, run.slurm or run.devices

    def delete(self, name: str) -> Path:
        """Moves a run that has no process to the trash, which it returns the place in."""
        with self._lock:
            run = self._require(name, (*ENDED, "queued"))
            self._write_queue([other for other in self._queue() if other != name])
            trash = self.runs_dir / TRASH
            trash.mkdir(exist_ok=True)
            return run.folder.rename(trash / free_name(trash, name))

    def _require(self, name: str, states: Sequence[State]) -> Run:
        """ValueError where the run is in none of these states."""
        run = self.run(name)
        if run.state not in states:
            raise ValueError(f"run: {name} is {run.state}, not {' or '.join(states)}")
        return run


def job_number(run: Run) -> str | None:
    """Number of the Slurm job of a run that has not ended."""
    return (read_json(run.folder / JOB) or {}).get("number") if run.state in ALIVE else None
