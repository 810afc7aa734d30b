"""A reward over HTTP: the server that is shipped, and servers that do not answer as they should."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import HANG_SEC
from tests.trainers.runs import read_jsonl, student_weights, trainer
from trainers.registry import load_reward
from trainers.run.checkpoint import checkpoint_folders
from trainers.scoring.reward import RewardError
from trainers.scoring.server import load_scorer, make_server
from trainers.settings.reward import RewardChoice

LORA = {"student": {"learning_rate": 1e-2, "lora": {"rank": 2}}, "group_size": 2}


def brightness(video: Any, prompts: list[str]) -> list[float]:
    return [float(clip.mean()) / 255 for clip in video]


@pytest.fixture
def serve() -> Iterator[Callable[[HTTPServer], str]]:
    """A server -> its address; it runs until the test is over."""
    servers: list[HTTPServer] = []

    def start(server: HTTPServer) -> str:
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/score"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answering(body: bytes, after: threading.Event) -> HTTPServer:
    """A server that answers everything with these bytes, once the event has happened."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            after.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    return HTTPServer(("127.0.0.1", 0), Handler)


def remote(url: str, timeout_sec: float = HANG_SEC) -> Any:
    settings = {"url": url, "timeout_sec": timeout_sec}
    return load_reward(RewardChoice(kind="remote", settings=settings), torch.device("cpu"))


def test_the_server_that_is_shipped_scores_the_pixels_that_it_was_sent(serve, tmp_path) -> None:
    scorer = tmp_path / "my_scorer.py"
    scorer.write_text(
        "def score(video, prompts):\n"
        "    return [c.mean() / 255 + len(p) for c, p in zip(video, prompts)]\n"
    )
    url = serve(make_server(load_scorer(scorer), "127.0.0.1", 0))
    video = torch.rand(2, 3, 3, 8, 8)
    found = remote(url).score(video, ("", "an ö & <b>"))
    expected = video.mean((1, 2, 3, 4)) + torch.tensor([0.0, 10.0])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_scorer_that_fails_says_why_through_the_server(serve) -> None:
    def fails(video: Any, prompts: list[str]) -> list[float]:
        raise RuntimeError("no weights")

    url = serve(make_server(fails, "127.0.0.1", 0))
    with pytest.raises(RewardError, match=r"refused \(500: .*no weights"):
        remote(url).score(torch.rand(1, 1, 3, 8, 8), ("",))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not json", "answered 'not json'"),
        (b'{"scores": "many"}', "answered"),
        (b'{"other": []}', "answered"),
    ],
)
def test_an_answer_that_is_none_is_one_sentence(body: bytes, message: str, serve) -> None:
    at_once = threading.Event()
    at_once.set()
    with pytest.raises(RewardError, match=message):
        remote(serve(answering(body, at_once))).score(torch.rand(1, 1, 3, 8, 8), ("",))


def test_an_answer_that_does_not_come_in_time_is_one_sentence(serve) -> None:
    given_up = threading.Event()
    url = serve(answering(b"{}", given_up))
    with pytest.raises(RewardError, match=r"has not answered within 0\.5 s"):
        remote(url, 0.5).score(torch.rand(1, 1, 3, 8, 8), ("",))
    given_up.set()


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:9/score cannot be reached"):
        remote("http://127.0.0.1:9/score").score(torch.rand(1, 1, 3, 8, 8), ("",))


def test_other_addresses_than_http_are_refused() -> None:
    with pytest.raises(ValueError, match="url"):
        remote("file:///etc/passwd")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([float("nan")] * 4, "remote answered nan for 4 of 4 videos, the first of 'caption"),
        ([1.0] * 3, r"remote answered \[3\] numbers for 4 videos"),
    ],
    ids=["nan", "length"],
)
def test_a_run_whose_reward_fails_keeps_its_steps_and_goes_on_as_if_nothing_had_been(
    scores: list[float], message: str, config, serve, tmp_path: Path
) -> None:
    broken = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            video = torch.tensor(list(base64.b64decode(question["video"])))
            right = video.view(question["shape"]).float().mean((1, 2, 3, 4)).tolist()
            self.send_response(200)
            self.end_headers()
            answer = scores if broken.is_set() else right
            self.wfile.write(json.dumps({"scores": answer}).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    url = serve(HTTPServer(("127.0.0.1", 0), Handler))

    def run(folder: str) -> Any:
        reward = {"kind": "remote", "settings": {"url": url}}
        built = config("nft", num_steps=3, algorithm=LORA, reward=reward)
        return trainer(built, tmp_path / folder)

    whole = run("whole")
    assert whole.train()
    failing = run("parts")
    step = failing.train_step

    def break_after_two() -> dict[str, Tensor]:
        if failing.step == 2:
            broken.set()
        return step()

    failing.train_step = break_after_two
    with pytest.raises(RewardError, match=message):
        failing.train()
    assert [folder.name for folder in checkpoint_folders(tmp_path / "parts")] == ["step_000002"]
    event = read_jsonl(tmp_path / "parts" / "events.jsonl")[-1]
    assert event["event"] == "reward_failed"
    assert event["step"] == 2
    broken.clear()
    resumed = run("parts")
    assert resumed.train()
    expected = student_weights(whole)
    assert all(torch.equal(expected[name], w) for name, w in student_weights(resumed).items())
