"""What is killed: a worker, the studio, both. Nothing is lost, nothing runs twice, nothing stays.

`mortal_app` ends by killing its studio and sees that the idle worker leaves with it.
"""

import signal
from dataclasses import fields

import psutil

from pipelines.video import read_recipe
from studio.clips.store import Job
from studio.clips.workers import clip_path, has_worker
from tests.studio.conftest import App, tiny_recipe, wait_for


def test_a_killed_worker_fails_its_job_with_a_reason_and_the_next_job_runs(app: App) -> None:
    long = tiny_recipe(steps=400, seed=40)
    app.store.enqueue(long)
    short = tiny_recipe(seed=41)
    app.store.enqueue(short)
    running = app.stepping(long.key())
    psutil.Process(running.worker_pid).kill()
    failed = app.job(long.key(), "failed")
    assert failed.error is not None
    assert "killed" in failed.error
    finished = app.job(short.key(), "finished")
    assert finished.worker_pid != running.worker_pid
    assert not clip_path(app.data, long.key()).exists()


def test_a_killed_studio_with_its_worker_runs_the_job_again_at_the_next_start(
    mortal_app: App,
) -> None:
    recipe = tiny_recipe(steps=100, seed=42)
    mortal_app.store.enqueue(recipe)
    before = mortal_app.stepping(recipe.key())
    mortal_app.process.send_signal(signal.SIGSTOP)  # it must not see its worker die first
    psutil.Process(before.worker_pid).kill()
    mortal_app.kill()
    mortal_app.start()
    after = mortal_app.job(recipe.key(), "finished")
    assert after.id == before.id
    assert after.worker_pid != before.worker_pid
    assert read_recipe(clip_path(mortal_app.data, recipe.key())) == recipe


def test_a_worker_that_lost_its_studio_finishes_once_and_leaves(mortal_app: App) -> None:
    recipe = tiny_recipe(steps=200, seed=43)
    mortal_app.store.enqueue(recipe)
    before = mortal_app.stepping(recipe.key())
    old_workers = mortal_app.workers()
    mortal_app.kill()
    mortal_app.start()
    after = mortal_app.job(recipe.key(), "finished")
    assert (after.id, after.worker_pid) == (before.id, before.worker_pid)
    wait_for(lambda: psutil.wait_procs(old_workers, timeout=0.1)[1] == [])


def test_a_running_job_stops_at_the_next_step_when_it_is_cancelled(app: App) -> None:
    recipe = tiny_recipe(steps=400, seed=44)
    app.store.enqueue(recipe)
    job = app.stepping(recipe.key())
    app.store.request_cancel(job.id)
    app.job(recipe.key(), "cancelled")
    assert not clip_path(app.data, recipe.key()).exists()


def test_a_recycled_pid_is_not_taken_for_the_worker() -> None:
    process = psutil.Process()
    pid, created = process.pid, process.create_time()
    nothing = dict.fromkeys(field.name for field in fields(Job))
    for worker, lives in (
        ((pid, created), True),
        ((pid, created - 100), False),
        ((None,) * 2, False),
    ):
        job = Job(**nothing | dict(zip(("worker_pid", "worker_created"), worker, strict=True)))
        assert has_worker(job) == lives
