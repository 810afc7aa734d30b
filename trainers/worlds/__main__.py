"""Draws a clip of a caption, or reads the caption out of a clip.

python -m trainers.worlds render --caption "..." --seed 1 --out x.mp4
python -m trainers.worlds check x.mp4 --caption "..."
"""

import argparse
import json
import sys
from pathlib import Path

from pipelines.video import read_video, write_video
from trainers.worlds.checker import observe
from trainers.worlds.shapes import SLOTS, Caption, render


def main() -> int:
    """The command line; returns the exit code: 0 all slots hold, 1 one fails, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.worlds", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("render", help="draw one clip of a caption")
    draw.add_argument("--out", type=Path, required=True)
    draw.add_argument("--seed", type=int, default=0)
    judge = commands.add_parser("check", help="read the slots out of a clip")
    judge.add_argument("video", type=Path)
    for command in (draw, judge):
        command.add_argument("--caption", required=True)
    options = parser.parse_args()
    try:
        caption = Caption.parse(options.caption)
        if options.command == "render":
            write_video(options.out, render(caption, options.seed), fps=8)
            return 0
        observation = observe(read_video(options.video))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    matches = observation.matches(caption)
    slots = {slot: {"seen": getattr(observation, slot), "matches": matches[slot]} for slot in SLOTS}
    unstated = {name: getattr(observation, name) for name in ("start", "path_length", "radius")}
    print(json.dumps({**slots, "unstated": unstated}, indent=2))
    return 0 if all(matches.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
