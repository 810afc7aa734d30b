"""Generation in worker processes: one pool of one process for each device, fed from the store.

The web process only hands out jobs and watches; models live in the workers. Each worker writes its
own progress and its own end into the store, so the web process may die and come back: a worker that
lost it finishes its clip and leaves, and a job whose worker is gone is queued again.
"""

import functools
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pebble import ProcessExpired, ProcessPool

from pipelines.catalog.registry import Registry
from pipelines.recipe import Recipe
from studio.clips.live_preview import Previews, preview_path
from studio.clips.store import ClipInfo, Job, Store
from studio.runs.processes import SLACK_SEC, find_older

if TYPE_CHECKING:  # these import torch, which the web process must never do
    from pipelines.generate import Clip
    from pipelines.model_cache import ModelCache
    from pipelines.models.preview import PreviewDecoder

POLL_SEC = 0.1  # how soon a free device takes the next job
REPORT_SEC = 0.2  # progress is written at most this often

log = logging.getLogger(__name__)


def clip_path(data: Path, key: str) -> Path:
    """Where the clip of a recipe lies; its poster lies beside it."""
    return data / "clips" / f"{key}.mp4"


def store_path(data: Path) -> Path:
    return data / "studio.db"


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is told: where all lies."""

    data: Path
    model_dirs: tuple[Path, ...]
    preview_decoder: Path | None = None


class Workers:
    """The worker processes of one data folder, one for each of `devices`, and their queue."""

    def __init__(self, store: Store, place: WorkerSettings, devices: Sequence[str]):
        self.store = store
        self.devices = tuple(devices)
        self._place = place
        self._pools: dict[str, ProcessPool] = {}
        self._running: dict[str, tuple[Job, Future[None]]] = {}
        self._lent: frozenset[str] = frozenset()
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="dispatcher", daemon=True)

    def start(self, first_model: str | None, memory: str = "plain") -> None:
        """Starts the processes; `first_model` is loaded at once, so the first clip comes fast."""
        for device in self.devices:
            if device in self._lent:
                continue
            self._open_pool(device)
            if first_model is not None:
                self._pools[device].schedule(warm_up, (self._place, device, first_model, memory))
        self._thread.start()

    def stop(self) -> None:
        """Ends the processes. Jobs that were running are queued again at the next start."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for pool in self._pools.values():
            pool.stop()
            pool.join()

    def lend(self, devices: frozenset[str]) -> None:
        """Makes clips on none of these devices any more, and on all others again.

        A clip that is being made is finished; then its process and all its models are gone.
        """
        with self._turn:
            self._lent = devices

    def has_left(self, device: str) -> bool:
        """Whether no process that makes clips is on the device, an earlier studio's included."""
        return device not in self._pools and not any(
            job.device == device and has_worker(job) for job in self.store.jobs("running")
        )

    def _open_pool(self, device: str) -> None:
        # spawn: CUDA does not survive a fork, and the web process has threads
        self._pools[device] = ProcessPool(max_workers=1, context=get_context("spawn"))

    def _loop(self) -> None:
        while not self._stopping.wait(POLL_SEC):
            try:
                with self._turn:
                    self._advance()
            except Exception:  # the queue must outlive one bad turn, such as a full disk
                log.exception("the queue could not advance; trying again")
                self._stopping.wait(5)

    def _advance(self) -> None:
        self._requeue_lost()
        for device in self.devices:
            self._settle(device)
            if device in self._lent:
                self._leave(device)
            else:
                self._dispatch(device)

    def _requeue_lost(self) -> None:
        """Jobs of an earlier studio: alive ones are left to finish, the others wait again."""
        own = {job.id for job, _ in self._running.values()}
        for job in self.store.jobs("running"):
            if job.id not in own and not has_worker(job):
                self.store.requeue(job.id)

    def _settle(self, device: str) -> None:
        """Looks after a call that came back; a worker that died leaves a reason and a new pool."""
        if device not in self._running or not self._running[device][1].done():
            return
        job, future = self._running.pop(device)
        error = future.exception()
        if error is None:
            return
        self.store.end(job.id, "failed", death_reason(error))
        self._leave(device)

    def _leave(self, device: str) -> None:
        """Ends an idle process, and with it all that it holds in memory."""
        if device in self._pools and device not in self._running:
            self._pools[device].stop()
            self._pools[device].join()
            del self._pools[device]  # only now: `has_left` must not be early

    def _dispatch(self, device: str) -> None:
        if device in self._running:
            return
        job = self.store.claim(device)
        if job is not None:
            if device not in self._pools:
                self._open_pool(device)
            future = self._pools[device].schedule(run_job, (self._place, device, job.id))
            self._running[device] = (job, future)


def death_reason(error: BaseException) -> str:
    """Why a worker died, in one sentence."""
    if isinstance(error, ProcessExpired) and error.exitcode in (-9, 9, 137):
        return "The worker process was killed, most likely because memory ran out; generate again."
    if isinstance(error, ProcessExpired):
        return f"The worker process died (exit code {error.exitcode}); generate again."
    return f"The worker process died ({type(error).__name__}); generate again."


def has_worker(job: Job) -> bool:
    """Whether the process that took a job still runs."""
    if job.worker_pid is None or job.worker_created is None:
        return False
    process = find_older(job.worker_pid, job.worker_created)
    # not only no younger: after a boot with the clock set back the id may be an earlier process's
    return process is not None and process.create_time() > job.worker_created - SLACK_SEC


# Below: what runs inside a worker process


@functools.cache
def _resident_models(place: WorkerSettings, device: str) -> "ModelCache":
    """The models of this process; they stay in memory from job to job."""
    import torch

    from pipelines.model_cache import ModelCache

    if device == "cpu":  # one core stays free: with all taken, each step waits for the slowest
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    return ModelCache(Registry(place.model_dirs), device)


@functools.cache
def _preview_decoder(file: Path, device: str) -> "PreviewDecoder":
    from pipelines.models.loading import best_dtype
    from pipelines.models.preview import load_preview_decoder

    return load_preview_decoder(file, device, best_dtype(device))


@functools.cache
def _worker_store(data: Path) -> Store:
    return Store(store_path(data))


def warm_up(place: WorkerSettings, device: str, model: str, memory: str) -> None:
    """Imports torch and loads `model`."""
    models = _resident_models(place, device)
    recipe = models.registry.recipe(model, prompt="", memory=memory)
    models.components(recipe, models.registry.entry(model))


def run_job(place: WorkerSettings, device: str, job_id: int) -> None:
    """Makes the clip of one job and writes how it ended into the store."""
    store = _worker_store(place.data)
    job = store.begin(job_id, os.getpid(), psutil.Process().create_time())
    if job is None:
        return
    try:
        _make_clip(store, job, place, device)
    except Exception as error:
        log.exception("job %d failed", job_id)
        store.end(job_id, "failed", failure_reason(error))
    finally:
        preview_path(place.data, job.key).unlink(missing_ok=True)


def _make_clip(store: Store, job: Job, place: WorkerSettings, device: str) -> None:
    from pipelines.generate import Clip, generate

    recipe, models = Recipe.model_validate_json(job.recipe), _resident_models(place, device)
    previews = None
    if place.preview_decoder is not None:
        decoder = _preview_decoder(place.preview_decoder, device)
        previews = Previews(decoder, preview_path(place.data, job.key), recipe.fps)
    reported, phase = 0.0, None
    with closing(generate(recipe, models, clip_path(place.data, job.key))) as events:
        for event in events:
            if isinstance(event, Clip):
                store.add_clip(recipe, clip_info(event))
                store.end(job.id, "finished")
                return
            if store.cancel_requested(job.id):
                store.end(job.id, "cancelled")
                return
            if event.phase != phase or time.monotonic() - reported > REPORT_SEC:
                store.report(job.id, event.phase, event.step, event.total, event.eta_sec)
                reported, phase = time.monotonic(), event.phase
            if previews is not None and event.estimate is not None:
                previews.offer(event.estimate)


def clip_info(clip: "Clip") -> ClipInfo:
    return ClipInfo(
        num_forwards=clip.num_forwards,
        load_sec=clip.load_sec,
        encode_sec=clip.encode_sec,
        denoise_sec=clip.denoise_sec,
        decode_sec=clip.decode_sec,
        total_sec=clip.total_sec,
        notes="\n".join(clip.notes),
    )


def failure_reason(error: Exception) -> str:
    """One sentence for the tile; the log has the rest."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, ValueError):
        return first_line
    if type(error).__name__ == "OutOfMemoryError":
        return "The device ran out of memory; try a smaller size, fewer frames or a smaller model."
    return f"{type(error).__name__}: {first_line}"
