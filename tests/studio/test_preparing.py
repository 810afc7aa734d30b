"""A preparation as a run of the supervisor: stopped, resumed, finished; and looks that fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.catalog.registry import Registry
from studio.data.preparing import Preparing
from studio.runs.supervisor import Supervisor
from studio.train.schemas import Methods
from studio.train.training import Training
from tests.studio.runs import until
from trainers.sources.inspect import look


@pytest.fixture
def preparing(tmp_path: Path, supervisor: Supervisor) -> Iterator[Preparing]:
    training = Training(Registry(), Methods(tmp_path), supervisor)
    yield Preparing(training)
    training.methods.close()


def tree(source: Path) -> dict[str, object]:
    return {"method": "prepare", "name": "prompts", "source": str(source), "model": "tiny-wan"}


def test_it_is_stopped_and_resumed_as_a_run_and_becomes_data(
    preparing: Preparing, supervisor: Supervisor, tmp_path: Path
) -> None:
    prompts = [f"a red circle number {number}" for number in range(400)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    name = preparing.start(tree(tmp_path / "prompts.txt"), ["cpu"])
    until(supervisor, name, "running")
    supervisor.stop(name)
    run = until(supervisor, name, "stopped")
    assert run.step < run.num_steps == 400
    (data,) = preparing.data_sets()
    assert not data.captions
    supervisor.resume(name)
    assert until(supervisor, name, "finished").step == 400
    (data,) = preparing.data_sets()
    assert list(data.captions) == prompts
    assert data.sizes == ((64, 64, 17),)
    assert data.num_bytes > 10**5


def test_a_look_says_what_is_wrong_in_the_words_of_the_command(
    preparing: Preparing, tmp_path: Path
) -> None:
    for change, said in (
        ({"frames": "6"}, "frames: is 6 but must be 4n[+]1; try 5"),
        ({"source": str(tmp_path / "no")}, "source: .* does not exist"),
        ({"fps": "many"}, "fps: "),
        ({"device": "cpu"}, "device: is not a known setting"),
    ):
        (tmp_path / "prompts.txt").write_text("a red circle")
        with pytest.raises(ValueError, match=f"^{said}"):
            look(tree(tmp_path / "prompts.txt") | change, Registry(), 0)
    with pytest.raises(ValueError, match="did you mean"):
        preparing.look(tree(tmp_path / "prompts.txt") | {"model": "tiny-van"})
    assert preparing.data_sets() == []


def test_a_model_of_the_studios_own_folder_is_known_to_the_look_and_to_the_run(
    supervisor: Supervisor, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle")
    monkeypatch.setenv("STUDIO_MODELS", str(models_dir))  # as `app.py --models` does
    training = Training(Registry([models_dir]), Methods(tmp_path), supervisor)
    asked = tree(tmp_path / "prompts.txt") | {"model": "student"}
    name = Preparing(training).start(asked, ["cpu"])
    assert until(supervisor, name, "finished").step == 1
    training.methods.close()
