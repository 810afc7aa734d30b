"""What cannot be written: the run says so, and what was written before stays."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainers.test_engine import trainer
from trainers.run.checkpoint import checkpoint_folders

MAX_FILE_BYTES = 10_000  # a checkpoint of the micro model has more


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow beyond a few bytes, which fails in the same places as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_without_room_ends_the_run_with_a_reason_and_leaves_the_last_one_whole(
    config, tmp_path: Path
) -> None:
    run = trainer(config("finetune", num_steps=2), tmp_path)
    run.folder.begin()
    run.train_step()
    run.step = 1
    run._save()
    with no_room(), pytest.raises(ValueError, match=r"^checkpoints: step_000002 .* free some"):
        run.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    resumed = trainer(config("finetune", num_steps=2), tmp_path)
    assert resumed.train()
    assert checkpoint_folders(tmp_path)[-1].name == "step_000002"
