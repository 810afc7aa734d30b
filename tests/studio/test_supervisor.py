"""The supervisor: a queue that nothing blocks, states that are true whatever was killed."""

import json
import shlex
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.video import read_recipe
from studio.clips.store import Store
from studio.clips.workers import Workers, WorkerSettings, clip_path, store_path
from studio.runs.files import CONFIG, EXIT, read_json
from studio.runs.launch import build_launch
from studio.runs.supervisor import Supervisor
from tests.conftest import HANG_SEC, wait_for
from tests.studio.conftest import tiny_recipe
from tests.studio.runs import BROKEN, QUICK, SLEEP, TRAINS, make_run, queue, states, until
from trainers.registry import build_config, read_tree


def test_twenty_queued_runs_three_of_them_broken_start_once_each_under_two_supervisors(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    note = f"open({str(tmp_path / 'begun')!r}, 'a').write(sys.argv[1] + '\\n')"
    names = [f"run-{number:02}" for number in range(20)]
    broken = {"run-00", "run-07", "run-08"}
    for number, name in enumerate(names):
        end = BROKEN if name in broken else QUICK
        queue(supervisor, name, f"import sys; {note}; {end}", devices=(f"cuda:{number % 4}",))
    other = Supervisor(supervisor.runs_dir)

    def work(one: Supervisor) -> None:
        while any(state not in ("finished", "failed") for state in states(one).values()):
            one.poll()

    threads = [threading.Thread(target=work, args=(one,)) for one in (supervisor, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SEC)
    assert {name for name, state in states(supervisor).items() if state == "failed"} == broken
    assert supervisor.run("run-07").reason == "ValueError: model: there is none"
    begun = [Path(line).name for line in (tmp_path / "begun").read_text().splitlines()]
    assert sorted(begun) == names


def test_a_device_has_one_run_at_a_time_and_a_run_that_waits_keeps_its_place(
    supervisor: Supervisor,
) -> None:
    queue(supervisor, "one", devices=("cuda:0",))
    queue(supervisor, "both", devices=("cuda:0", "cuda:1"))
    queue(supervisor, "late", devices=("cuda:1",))
    queue(supervisor, "cpu")
    supervisor.poll()
    waiting = {run.name: run.waits_for for run in supervisor.runs() if run.state == "queued"}
    assert waiting == {"both": "cuda:0, used by one", "late": "cuda:1, used by both"}
    assert [run.position for run in supervisor.runs()] == [None, None, 1, 2]
    supervisor.force_stop("one")
    supervisor.poll()
    assert supervisor.run("both").state == "starting"
    assert supervisor.run("late").state == "queued"


def test_the_order_of_the_queue_can_be_changed_and_a_run_leaves_it(
    supervisor: Supervisor,
) -> None:
    for name in ("a", "b", "c", "d"):
        queue(supervisor, name)
    supervisor.move("d", -2)
    supervisor.move("a", 99)
    supervisor.unqueue("b")
    supervisor._enqueue(supervisor.runs_dir / "c", first=True)
    assert [run.name for run in supervisor.runs()] == ["c", "d", "a", "b"]
    assert supervisor.run("b").state == "stopped"
    assert read_json(supervisor.runs_dir / "queue.json") == ["c", "d", "a"]
    with pytest.raises(ValueError, match="b is stopped, not queued"):
        supervisor.move("b", 1)


def test_a_run_after_another_starts_when_that_one_is_finished_and_blocks_nobody_until_then(
    supervisor: Supervisor,
) -> None:
    queue(supervisor, "first", BROKEN)
    queue(supervisor, "second", QUICK, after="first")
    queue(supervisor, "third", QUICK)
    until(supervisor, "third", "finished")
    assert supervisor.run("second").waits_for == "first (failed)"
    (supervisor.runs_dir / "first" / EXIT).write_text(
        json.dumps({"state": "finished", "reason": "", "code": 0, "time": time.time()})
    )
    until(supervisor, "second", "finished")


def test_a_damaged_folder_hides_no_other_run_and_blocks_no_queue(supervisor: Supervisor) -> None:
    damaged = queue(supervisor, "damaged", QUICK)
    for name in ("launch.json", "events.jsonl", "metrics.jsonl", CONFIG):
        (damaged / name).write_bytes(b'{"a": [1\xff\0')
    queue(supervisor, "good", QUICK)
    until(supervisor, "good", "finished")
    assert supervisor.run("damaged").state == "failed"


def test_what_makes_no_sense_in_a_state_is_refused_in_words(supervisor: Supervisor) -> None:
    queue(supervisor, "run", SLEEP)
    for action in (supervisor.stop, supervisor.save_now, supervisor.force_stop, supervisor.resume):
        with pytest.raises(ValueError, match=r"^run: run is queued, not "):
            action("run")
    until(supervisor, "run", "starting")
    supervisor.save_now("run")
    assert (supervisor.runs_dir / "run/control/save_now").exists()
    with pytest.raises(ValueError, match=r"^validation: run has none"):
        supervisor.sample_now("run")
    with pytest.raises(ValueError, match=r"^run: run is starting, not "):
        supervisor.delete("run")


@pytest.mark.parametrize("name", ["../runs", "..", "", "run/../run", "$(id)", "a\n", None, ["run"]])
def test_a_name_that_is_no_run_of_this_folder_is_refused(name, supervisor: Supervisor) -> None:
    make_run(supervisor.runs_dir, "run")
    for action in (supervisor.stop, supervisor.delete, supervisor.clone, supervisor.unqueue):
        with pytest.raises(ValueError, match=r"^run: there is no run"):
            action(name)
    with pytest.raises(ValueError, match=r"^name: "):
        supervisor.submit({"name": name}, ["cpu"])


def test_a_deleted_run_lies_in_the_trash_and_its_name_is_free(supervisor: Supervisor) -> None:
    for _ in range(2):
        queue(supervisor, "run", QUICK)
        supervisor.delete("run")
    assert supervisor.runs() == []
    trash = supervisor.runs_dir / ".trash"
    assert all((trash / name / CONFIG).is_file() for name in ("run", "run-2"))
    assert read_json(supervisor.runs_dir / "queue.json") == []


class SlowGeneration:
    """Makes clips on cuda:0 and leaves it when it is told to."""

    def __init__(self) -> None:
        self.lent: frozenset[str] = frozenset()
        self.left = False

    def lend(self, devices: frozenset[str]) -> None:
        self.lent = devices

    def has_left(self, device: str) -> bool:
        return self.left


def test_a_run_starts_once_generation_has_left_its_device_and_gives_it_back(
    tmp_path: Path,
) -> None:
    generation = SlowGeneration()
    supervisor = Supervisor(tmp_path / "runs", generation)
    queue(supervisor, "run", TRAINS, devices=("cuda:0",))
    queue(supervisor, "cpu", QUICK)
    until(supervisor, "cpu", "finished")
    assert (supervisor.run("run").state, generation.lent) == ("queued", {"cuda:0"})
    generation.left = True
    until(supervisor, "run", "running")
    assert Supervisor(tmp_path / "runs", later := SlowGeneration()).poll() is None
    assert later.lent == {"cuda:0"}
    supervisor.stop("run")
    until(supervisor, "run", "stopped")
    supervisor.poll()
    assert generation.lent == frozenset()


def test_no_process_makes_clips_on_a_device_that_is_lent_when_the_studio_starts(
    tmp_path: Path,
) -> None:
    workers = Workers(Store(store_path(tmp_path)), WorkerSettings(tmp_path, ()), ["cpu"])
    workers.lend(frozenset({"cpu"}))
    workers.start("tiny-wan")
    try:
        assert workers.has_left("cpu")
    finally:
        workers.stop()


def test_generation_leaves_a_lent_device_after_its_clip_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    store = Store(store_path(tmp_path))
    workers = Workers(
        store, WorkerSettings(tmp_path, ()), ["cpu"]
    )  # not started: each turn is ours
    first, second = tiny_recipe(), tiny_recipe(seed=1)
    store.enqueue(first)
    store.enqueue(second)
    workers.lend(frozenset({"cpu"}))
    workers._advance()
    assert workers.has_left("cpu")
    assert [job.key for job in store.jobs("queued")] == [first.key(), second.key()]
    workers.lend(frozenset())
    workers._advance()
    try:
        worker = psutil.Process(wait_for(lambda: store.job(1).worker_pid))
        workers.lend(frozenset({"cpu"}))
        assert not workers.has_left("cpu")
        wait_for(lambda: workers._advance() or workers.has_left("cpu"))
        assert not worker.is_running()
        assert [store.job(number).state for number in (1, 2)] == ["finished", "queued"]
        assert read_recipe(clip_path(tmp_path, first.key())) == first
    finally:
        workers.stop()


def test_a_submitted_run_is_its_configuration_and_a_clone_has_another_name(
    supervisor: Supervisor, config_tree
) -> None:
    tree = build_config(config_tree("dmd2")).model_dump(mode="json")
    assert supervisor.submit(tree, ["cpu", "cpu"]) == "micro"
    folder = supervisor.runs_dir / "micro"
    assert build_config(read_tree(folder / CONFIG)).model_dump(mode="json") == tree
    with pytest.raises(ValueError, match=r"^name: there is a run micro already"):
        supervisor.submit(tree, ["cpu"])
    with pytest.raises(ValueError, match=r"^run: there is no run 'none'"):
        supervisor.submit(tree | {"name": "next"}, ["cpu"], after="none")
    with pytest.raises(ValueError, match=r"^devices: cpu, cuda:99 cannot be used"):
        supervisor.submit(tree | {"name": "next"}, ["cpu", "cuda:99"])
    assert supervisor.clone("micro") == (tree | {"name": "micro-2"}, ("cpu", "cpu"))
    assert [run.name for run in supervisor.runs()] == ["micro"]


def test_the_shown_command_is_the_one_that_runs(supervisor: Supervisor) -> None:
    launch = build_launch(Path("/runs/a b;$(c)"), ["cpu", "cpu"])
    assert shlex.split(launch.shell()) == [
        "CUDA_VISIBLE_DEVICES=",
        "PYTHONUNBUFFERED=1",
        *launch.command,
    ]
    assert launch.command[1:6] == (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    )
