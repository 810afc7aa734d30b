"""The process itself: what it refuses, what it serves, and what it never imports."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from studio.clips.workers import clip_path
from tests.conftest import HANG_SEC
from tests.studio.conftest import PROMPT, ROOT, App, tiny_recipe

VARIANT = {"model": "tiny-wan", "num_inference_steps": 1, "guidance_scale": 1.0, "num_frames": 5}


def refusal(*options: str) -> str:
    """What `app.py` says when it refuses to start."""
    ended = subprocess.run(
        [sys.executable, "app.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SEC,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def test_sharing_without_a_password_is_refused() -> None:
    assert "--auth" in refusal("--share")
    assert "--auth" in refusal("--host", "0.0.0.0")


def test_a_password_without_a_name_is_refused() -> None:
    assert "USER:PASSWORD" in refusal("--auth", "secret")


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refusal("--port", port, "--data", str(tmp_path))


def test_a_second_studio_on_the_same_data_is_refused(app: App) -> None:
    assert "--data" in refusal("--port", "0", "--data", str(app.data))


def test_a_models_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    options = ("--port", "0", "--data", str(tmp_path), "--models", str(tmp_path / "nowhere"))
    assert "nowhere" in refusal(*options)


def test_the_web_process_holds_neither_torch_nor_diffusers(app: App) -> None:
    maps = [region.path for region in psutil.Process(app.process.pid).memory_maps()]
    assert any("sqlite3" in path for path in maps)
    assert not any("libtorch" in path for path in maps)


def get(url: str) -> int:
    """The HTTP status of a GET."""
    try:
        return urllib.request.urlopen(url).status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_clips_and_exports_are_served(app: App) -> None:
    recipe = tiny_recipe(seed=20)
    app.store.enqueue(recipe)
    app.job(recipe.key(), "finished")
    files = app.url + "gradio_api/file="
    assert get(f"{files}clips/{recipe.key()}.mp4") == 200
    for path in ("studio.db", "app.log", "clips/../studio.db", ROOT / "app.py", "/etc/passwd"):
        assert get(f"{files}{path}") == 403, path


def test_the_api_makes_a_clip_and_the_same_recipe_comes_from_the_cache(app: App) -> None:
    client = Client(app.url, verbose=False)
    variants = [VARIANT | {"seed": 30}, VARIANT | {"seed": 30}]
    first = client.predict(PROMPT, variants, api_name="/submit_compare")
    recipe = tiny_recipe(seed=30)
    made = app.job(recipe.key(), "finished")
    second = client.predict(PROMPT, variants[:1], api_name="/submit_compare")
    cells = [
        cell
        for comparison in (first, second)
        for cell in client.predict(comparison, api_name="/job_status")["cells"]
    ]
    assert [cell["state"] for cell in cells] == ["finished"] * 3
    latest = app.store.latest_job(recipe.key())
    assert latest is not None
    assert latest.id == made.id
    found = client.predict(second, "A", api_name="/get_recipe")
    assert found == recipe.model_dump(mode="json")
    models = client.predict(api_name="/list_models")
    available = {model["name"] for model in models if model["available"]}
    assert {"tiny-wan", "student", "tiny-dmd4"} <= available


def test_a_deleted_clip_is_reported_and_made_again(app: App) -> None:
    client = Client(app.url, verbose=False)
    variants = [VARIANT | {"seed": 31}]
    comparison = client.predict(PROMPT, variants, api_name="/submit_compare")
    key = tiny_recipe(seed=31).key()
    first = app.job(key, "finished")
    clip_path(app.data, key).unlink()
    (cell,) = client.predict(comparison, api_name="/job_status")["cells"]
    assert cell["state"] == "missing"
    assert "Generate" in cell["error"]
    client.predict(PROMPT, variants, api_name="/submit_compare")
    assert app.job(key, "finished", "queued", "running").id != first.id
    app.job(key, "finished")
    assert clip_path(app.data, key).exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "nothing"}, "model"),
        ({"model": "/etc"}, "model"),
        ({"lora": "/etc/passwd"}, "lora"),
        ({"num_frames": 6}, "num_frames"),
        ({"size": "65x64"}, "width"),
        ({"size": "big"}, "size"),
        ({"stepz": 3}, "stepz"),
    ],
)
def test_a_bad_variant_is_refused_with_the_name_of_its_field(
    app: App, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(AppError, match=field):
        Client(app.url, verbose=False).predict(
            PROMPT, [VARIANT | change], api_name="/submit_compare"
        )


@pytest.fixture(scope="module")
def viewer(app: App) -> Iterator[App]:
    """A studio for viewers on the data of the shared one."""
    watching = App(app.data).start("--viewer")
    yield watching
    watching.stop()


def call_server(app: App, name: str, data: object, part: str = "player") -> Any:
    """Calls a server function of the player, or of another part, over raw HTTP."""
    config = json.load(urllib.request.urlopen(app.url + "config"))
    (found,) = [c for c in config["components"] if c["props"].get("elem_id") == part]
    body = {"session_hash": "x", "component_id": found["id"], "fn_name": name, "data": data}
    request = urllib.request.Request(
        app.url + "gradio_api/component_server",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    return json.load(urllib.request.urlopen(request))


def test_a_viewer_sees_comparisons_and_can_make_or_cancel_nothing(app: App, viewer: App) -> None:
    comparison = Client(app.url, verbose=False).predict(
        PROMPT, [VARIANT | {"seed": 32}], api_name="/submit_compare"
    )
    watching = Client(viewer.url, verbose=False)
    job = app.job(tiny_recipe(seed=32).key(), "finished")
    (cell,) = watching.predict(comparison, api_name="/job_status")["cells"]
    assert cell["state"] == "finished"
    assert call_server(viewer, "status", comparison)["viewer"]
    with pytest.raises(AppError, match="viewing only"):
        watching.predict(PROMPT, [VARIANT], api_name="/submit_compare")
    with pytest.raises(AppError, match="viewing only"):
        watching.predict(job.id, api_name="/cancel_job")
    for name, data in (
        ("cancel", job.id),
        ("export", [comparison, ".gif"]),
        ("commands", comparison),
    ):
        assert "viewing only" in call_server(viewer, name, data)["error"], name


def test_a_viewer_sees_the_models_and_can_download_none(app: App, viewer: App) -> None:
    shown = call_server(viewer, "show", "", "model-list")
    assert "Wan2.1 T2V 1.3B" in shown
    assert "<button" not in shown
    assert str(ROOT) not in shown
    for action in ("download", "stop"):
        answer = call_server(viewer, "act", ["wan2.1-t2v-1.3b", action, ""], "model-list")
        assert "viewing only" in answer["error"]


@pytest.mark.parametrize(
    "data",
    [["../x", "download"], ["tiny-wan", "download"], ["wan2.1-t2v-1.3b", "rm"], [[], {}], [1, 2]],
    ids=str,
)
def test_the_list_of_models_refuses_what_is_no_download(app: App, data: list[object]) -> None:
    answer = call_server(app, "act", [*data, ""], "model-list")
    assert "can be downloaded" in answer["error"] or "no action" in answer["error"]


def test_the_server_functions_refuse_what_is_not_an_id(app: App) -> None:
    for name, data in (
        ("status", "../studio"),
        ("status", {"a": 1}),
        ("cancel", "1 OR 1=1"),
        ("export", ["../../x", ".mp4"]),
        ("export", ["0" * 16, ".html"]),
    ):
        assert "error" in call_server(app, name, data), name


def test_a_lost_index_is_rebuilt_from_the_clips(tmp_path: Path, app: App) -> None:
    from pipelines.catalog.registry import Registry
    from studio.studio import Studio

    recipe = tiny_recipe(seed=33)
    app.store.enqueue(recipe)
    app.job(recipe.key(), "finished")
    studio = Studio(tmp_path, Registry(), viewer=False)
    copy = clip_path(tmp_path, recipe.key())
    copy.write_bytes(clip_path(app.data, recipe.key()).read_bytes())
    (tmp_path / "clips" / "abc.mp4").write_bytes(b"not a video")
    assert not studio.has_clip(recipe.key())
    studio.index_clips()
    assert studio.has_clip(recipe.key())
    assert studio.store.clip_keys() == {recipe.key()}
