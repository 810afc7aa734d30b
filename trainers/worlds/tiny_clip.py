"""An earlier name of `python -m trainers.tiny.clip`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("trainers.tiny.clip", run_name="__main__", alter_sys=True)
