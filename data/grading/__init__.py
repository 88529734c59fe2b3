"""Grading: extract the final answer of a completion, parse it, compare it with the reference.

`grader.py` is the interface; demonstrations, rewards and scores use it. A change here changes results: check it with
`tests/golden/grading.jsonl` and `tests/bench/bench_grading.py`.
"""
