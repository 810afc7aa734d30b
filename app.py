"""The studio's web process: `python app.py`, then open the address that it prints."""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    arguments = parse(sys.argv[1:])
    try:
        check(arguments)
        serve(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Compare video models.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--data", type=Path, help="folder for clips and the index")
    parser.add_argument(
        "--models", type=Path, action="append", default=[], help="folder with models and LoRAs"
    )
    parser.add_argument("--runs", type=Path, help="folder of training runs; default: runs/ here")
    parser.add_argument("--share", action="store_true", help="make a public link; needs --auth")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a name and a password")
    parser.add_argument(
        "--reward-host",
        action="append",
        default=[],
        metavar="HOST",
        help="where runs of the page may ask a reward server; this machine always",
    )
    parser.add_argument("--viewer", action="store_true", help="show comparisons, make nothing")
    parser.add_argument(
        "--device", action="append", default=[], help="cuda:0, cpu, ...; default: every GPU"
    )
    parser.add_argument(
        "--memory", default="plain", help="plain, fit (to the device), or NAME=VALUE,..."
    )
    parser.add_argument(
        "--preview-decoder", type=Path, metavar="FILE",
        help="a TAEHV file for Wan2.1 (taew2_1): tiles show rough previews while clips are made",
    )  # fmt: skip
    return parser.parse_args(words)


def check(arguments: argparse.Namespace) -> None:
    """ValueError in one sentence for what must not or cannot be served."""
    if arguments.auth is not None and not all(arguments.auth.partition(":")):
        raise ValueError("--auth must be USER:PASSWORD")
    if arguments.auth is None and (arguments.share or arguments.host not in LOOPBACK):
        option = "--share" if arguments.share else f"--host {arguments.host}"
        raise ValueError(
            f"{option} lets other people run this machine; protect it with --auth USER:PASSWORD"
        )
    from pipelines.files.preview_decoder import check_preview_decoder
    from pipelines.memory import memory_words, parse_memory

    arguments.memory = memory_words(parse_memory(arguments.memory))
    if arguments.preview_decoder is not None:
        check_preview_decoder(arguments.preview_decoder)
        arguments.preview_decoder = arguments.preview_decoder.resolve()
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((arguments.host, arguments.port))
        except OSError as error:
            raise ValueError(
                f"--port {arguments.port} on {arguments.host} cannot be used ({error.strerror}); "
                "choose another --port"
            ) from error


def serve(arguments: argparse.Namespace) -> None:
    """Runs until interrupted. Imports are here: worker processes import this file too."""
    import platformdirs
    from filelock import FileLock, Timeout

    data = (arguments.data or Path(platformdirs.user_data_dir("wan-studio"))).resolve()
    data.mkdir(parents=True, exist_ok=True)
    models = [folder.resolve() for folder in arguments.models]
    lock = FileLock(data / "studio.lock")
    if not arguments.viewer:  # viewers only read; two queues on one folder would fight
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"--data {data} is used by another studio; close that one or choose another folder"
            ) from error
    if arguments.runs is not None:  # workers and runs find each other's exports there, too
        os.environ["STUDIO_RUNS"] = str(arguments.runs.resolve())
    if models:  # and runs find these
        os.environ["STUDIO_MODELS"] = os.pathsep.join(map(str, models))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(data / "cache")
    os.chdir(data)  # so that links to clips are relative and do not tell where the folder lies
    launch(arguments, data, models)


def launch(arguments: argparse.Namespace, data: Path, models: list[Path]) -> None:
    from pipelines.catalog.registry import RUNS, Registry

    registry = Registry(models)  # before Gradio, which takes a second to import
    from studio.clips.workers import Workers, WorkerSettings
    from studio.runs.devices import default_devices
    from studio.runs.supervisor import Supervisor
    from studio.studio import Studio
    from studio.train.schemas import Methods
    from studio.train.training import Training
    from studio.ui import build_page

    studio = Studio(data, registry, arguments.viewer, arguments.memory)
    devices = arguments.device or default_devices()
    workers: Workers | None = None
    served = [data / name for name in ("clips", "exports", "images", "previews")]
    if not studio.viewer:
        served.append(RUNS)
        place = WorkerSettings(data, tuple(models), arguments.preview_decoder)
        workers = Workers(studio.store, place, devices)
        runs = Supervisor(RUNS, workers)
        hosts = tuple(host.lower() for host in arguments.reward_host)
        studio.training = Training(registry, Methods(data), runs, (data,), hosts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that `finally` runs
    page = build_page(studio, devices)
    try:
        listen(page, arguments, served)
        if workers is not None:  # only now: loading a model would slow down the first page
            studio.index_clips()
            studio.training.supervisor.start()  # first: it knows which devices runs still use
            workers.start(studio.first_model(), studio.memory)
        page.block_thread()
    finally:
        if workers is not None:
            studio.training.close()
            workers.stop()


def listen(page: "gr.Blocks", arguments: argparse.Namespace, served: list[Path]) -> None:
    """Opens the address; files below `served` can be fetched from it."""
    from studio.ui import find_styles, theme

    page.queue(max_size=64, default_concurrency_limit=8)  # events are short; the store queues jobs
    page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        auth=tuple(arguments.auth.split(":", 1)) if arguments.auth else None,
        theme=theme(),
        css_paths=find_styles(),
        allowed_paths=[str(folder) for folder in served],
        footer_links=["api", "settings"],
        max_file_size="512mb",
        mcp_server=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        show_error=True,
        prevent_thread_lock=True,
    )


if __name__ == "__main__":
    main()
