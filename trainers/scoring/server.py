"""A reward as a server, for an environment of its own: copy this file there; it needs numpy only.

    python reward_server.py my_scorer.py --port 8500

my_scorer.py holds one function:

    def score(video, prompts):      # uint8 [B, F, H, W, 3], list of B texts -> B numbers
        ...

GET / says that it is up. It listens on this machine only unless --host says otherwise; whoever can
reach it can use it. One batch is scored at a time.
"""

import argparse
import base64
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np

Score = Callable[[np.ndarray, list[str]], Sequence[float]]


def make_server(score: Score, host: str, port: int) -> HTTPServer:
    """A server that answers with `score`; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"status": "up"})

        def do_POST(self) -> None:
            try:
                size = int(self.headers["Content-Length"])
                self._answer(200, {"scores": answer(score, json.loads(self.rfile.read(size)))})
            except Exception as error:  # whatever a scorer raises is the asker's to know
                self._answer(500, {"error": f"{type(error).__name__}: {error}"})

        def _answer(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer((host, port), Handler)


def answer(score: Score, question: dict[str, Any]) -> list[float]:
    """The scores of one question. ValueError where they are not one finite number a video."""
    pixels = np.frombuffer(base64.b64decode(question["video"]), np.uint8)
    video, prompts = pixels.reshape(question["shape"]), list(question["prompts"])
    scores = [float(each) for each in score(video, prompts)]
    if len(scores) != len(prompts) or not all(map(math.isfinite, scores)):
        raise ValueError(f"the scorer returned {scores} for {len(prompts)} videos")
    return scores


def load_scorer(path: Path) -> Score:
    """The function `score` of a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"error: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Score = module.score
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A reward as a server.")
    parser.add_argument("scorer", type=Path, help="a Python file with the function `score`")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8500)
    options = parser.parse_args()
    with make_server(load_scorer(options.scorer), options.host, options.port) as server:
        print(f"scoring at http://{options.host}:{server.server_port}/score", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
