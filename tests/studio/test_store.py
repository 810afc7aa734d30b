"""The index: jobs change state once, whoever else is trying."""

import sqlite3
from pathlib import Path

import pytest

from pipelines.recipe import Recipe
from studio.clips.store import Cell, ClipInfo, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "studio.db")


def recipe(seed: int = 0) -> Recipe:
    return Recipe(model="tiny-wan", prompt="a red circle", seed=seed)


def test_the_same_recipe_is_queued_once(store: Store) -> None:
    store.enqueue(recipe())
    store.enqueue(recipe())
    store.enqueue(recipe(seed=1))
    assert [job.key for job in store.jobs("queued")] == [recipe().key(), recipe(seed=1).key()]


def test_a_recipe_that_failed_can_be_queued_again(store: Store) -> None:
    store.enqueue(recipe())
    job = store.claim("cpu")
    assert job is not None
    store.end(job.id, "failed", "no memory")
    store.enqueue(recipe())
    assert len(store.jobs("queued")) == 1


def test_a_busy_device_gets_no_second_job_but_another_device_does(store: Store) -> None:
    store.enqueue(recipe())
    store.enqueue(recipe(seed=1))
    first = store.claim("cuda:0")
    assert first is not None
    assert first.key == recipe().key()
    assert store.claim("cuda:0") is None
    second = store.claim("cuda:1")
    assert second is not None
    assert second.key == recipe(seed=1).key()


def test_two_stores_on_one_file_never_claim_the_same_job(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "studio.db")
    store.enqueue(recipe())
    assert [store.claim("cuda:0") is None, other.claim("cuda:1") is None] == [False, True]


def test_only_one_worker_begins_a_job(store: Store) -> None:
    store.enqueue(recipe())
    job = store.claim("cpu")
    assert job is not None
    assert store.begin(job.id, pid=10, created=1.0) is not None
    assert store.begin(job.id, pid=11, created=2.0) is None


def test_a_job_that_was_put_back_is_not_begun_by_its_old_worker(store: Store) -> None:
    store.enqueue(recipe())
    job = store.claim("cpu")
    assert job is not None
    store.requeue(job.id)
    assert store.begin(job.id, pid=10, created=1.0) is None


def test_cancelling_a_waiting_job_ends_it_and_a_running_one_hears_of_it(store: Store) -> None:
    store.enqueue(recipe())
    store.enqueue(recipe(seed=1))
    running, waiting = store.claim("cpu"), store.jobs("queued")[0]
    assert running is not None
    store.request_cancel(running.id)
    store.request_cancel(waiting.id)
    assert store.cancel_requested(running.id)
    assert [job.id for job in store.jobs("cancelled")] == [waiting.id]
    store.requeue(running.id)
    assert store.jobs("queued") == []


def test_a_job_keeps_its_first_end(store: Store) -> None:
    store.enqueue(recipe())
    job = store.claim("cpu")
    assert job is not None
    store.end(job.id, "finished")
    store.end(job.id, "failed", "too late")
    ended = store.job(job.id)
    assert ended is not None
    assert (ended.state, ended.error) == ("finished", None)


def test_a_write_that_fails_leaves_no_open_transaction(store: Store) -> None:
    with pytest.raises(sqlite3.ProgrammingError):
        store.end(object(), "failed")  # type: ignore[arg-type]
    store.enqueue(recipe())
    assert len(store.jobs("queued")) == 1


def test_comparisons_and_clips_survive_reopening(store: Store, tmp_path: Path) -> None:
    cells = (Cell(label="A", title="TinyWan, 30 steps", recipe=recipe()),)
    comparison_id = store.add_comparison(cells)
    info = ClipInfo(num_forwards=60, denoise_sec=1.5, notes="one note")
    store.add_clip(recipe(), info)
    store.close()
    again = Store(tmp_path / "studio.db")
    found = again.comparison(comparison_id)
    assert found is not None
    assert found.cells == cells
    assert again.clip_info(recipe().key()) == info
    assert again.recent_clips(5) == [(recipe(), info)]
