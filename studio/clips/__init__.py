"""Clips in the making: the SQLite queue and index, and the worker processes that make them.

Call `store.Store` for the state, `workers.Workers` for the processes.
Torch is imported in the workers alone.
"""
