"""For all tests: one thread a process, because two processes of tests share the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported
