"""An earlier name of `python -m trainers.tiny.wan`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("trainers.tiny.wan", run_name="__main__", alter_sys=True)
