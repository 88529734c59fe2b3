"""What "correct" means: extract the final answer, read it, compare it with the reference.

`grader.py` is the entrance and the one grader: demonstrations, rewards and scores call it. A change here
changes results; `tests/golden/grading.jsonl` and `tests/bench/bench_grading.py` must agree.
"""
