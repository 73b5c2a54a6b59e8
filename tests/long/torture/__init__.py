"""Kill runs and sweeps, damage checkpoints, and compare the outcome with an undisturbed run.

`tests/test_repeatability.py` and `tests/sweeps/test_sweep.py` do it in short; `python -m
tests.long.torture` does it at length. Processes are killed from outside at random moments, or by
`tests/support/driver` at a named place. The driver also records the phase of a process, which tells
where a kill fell.
"""
