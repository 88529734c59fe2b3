"""Pure statistics: joint bootstrap draws, intervals, tests and transfer indices from arrays of scores.

Reads no file. Every estimator has its source in `docs/statistics.md` and its coverage in `tests/bench/coverage.py`.
"""
