"""An earlier name of `python -m trainers.evaluation`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("trainers.evaluation", run_name="__main__", alter_sys=True)
