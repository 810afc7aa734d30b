"""An earlier name of trainers/scoring/server.py, which runs as a file, without this project."""

from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    run_path(str(Path(__file__).parent / "scoring" / "server.py"), run_name="__main__")
