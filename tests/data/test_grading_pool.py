"""The processes behind the grader: a true wall clock, replacement of what hangs or dies, order, no leftovers."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.grading.grader import Grader, Outcome
from tests.paths import ROOT

HARD = r"\boxed{\int_0^6 1\,dx}"  # needs the algebra system
ENDLESS = r"\boxed{\int_0^1 x^{x^{x^x}} dx}", r"\int_0^1 x^{x^{x^{x^x}}} dx"


@pytest.fixture(scope="module")
def grader():
    grader = Grader(workers=2, timeout_seconds=1)
    yield grader
    grader.close()


def children() -> list[int]:
    """Process ids of this process's children, zombies included."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has just ended
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def test_wall_clock_limit_holds_in_a_thread(grader):
    """math-verify's own limit is a signal and is silent off the main thread; this one must not be."""
    result = {}

    def work():
        grader.grade(HARD, "6")  # starts the worker, which is not part of the limit
        begun = time.monotonic()
        result["grade"] = grader.grade(*ENDLESS)
        result["seconds"] = time.monotonic() - begun

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert result["grade"].outcome is Outcome.TIMEOUT
    assert 1 <= result["seconds"] < 20
    assert grader.grade(HARD, "6").correct  # with a new process


def test_one_limit_for_a_comparison_with_many_hard_parts(grader):
    grader.grade(HARD, "6")
    begun = time.monotonic()
    answer, reference = ENDLESS[0][len(r"\boxed{") : -1], ENDLESS[1]
    several = ", ".join(f"{n}+{answer}" for n in range(12)), ", ".join(f"{n}+{reference}" for n in range(12))
    assert grader.grade(rf"\boxed{{({several[0]})}}", f"({several[1]})").outcome is Outcome.TIMEOUT
    assert time.monotonic() - begun < 20


def test_killed_worker_is_an_outcome_and_is_replaced(grader):
    assert grader.grade(HARD, "6").correct
    grader._workers.idle[0].process.kill()
    assert grader.grade(HARD, "7").outcome is Outcome.CRASH
    assert grader.grade(HARD, "6").correct


def test_order_and_number_of_results_when_some_hang(grader):
    completions = [ENDLESS[0] if n == 5 else rf"\boxed{{\int_0^{{{n}}} 2x\,dx}}" for n in range(12)]
    references = [ENDLESS[1] if n == 5 else str(n * n + (n % 3 == 0)) for n in range(12)]
    outcomes = [grade.outcome for grade in grader.grade_many(completions, references)]
    expected = [Outcome.WRONG if n % 3 == 0 else Outcome.CORRECT for n in range(12)]
    expected[5] = Outcome.TIMEOUT
    assert outcomes == expected


def test_equal_pairs_are_compared_once(grader, monkeypatch):
    asked = []
    ask = grader._workers.ask
    monkeypatch.setattr(grader._workers, "ask", lambda *arguments: asked.append(arguments) or ask(*arguments))
    grades = grader.grade_many([HARD, r"\boxed{7}", HARD, HARD], ["6", "6", "6", "7"])
    assert [grade.correct for grade in grades] == [True, False, True, False]
    assert len(asked) == 2


def test_closed_grader_leaves_no_process_and_no_zombie():
    before = set(children())
    grader = Grader(workers=2, timeout_seconds=3)  # a busy machine must not end the worker of HARD too
    grader.grade_many([HARD, HARD, ENDLESS[0]], ["6", "7", ENDLESS[1]])
    started = set(children()) - before
    assert 1 <= len(started) <= 2
    grader.close()
    assert not set(children()) & started


def grade_in_child(queue):
    queue.put(Grader().grade(HARD, "6").outcome.value)


def test_works_in_a_spawned_process():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=grade_in_child, args=(queue,))
    process.start()
    assert queue.get(timeout=120) == "correct"
    process.join(30)
    assert process.exitcode == 0


@pytest.mark.slow
def test_works_inside_torchrun_ranks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        "import os\nfrom data.grading.grader import Grader\nimport torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        f"grades = Grader(2, 2).grade_many([{HARD!r}, {ENDLESS[0]!r}], ['6', {ENDLESS[1]!r}])\n"
        "outcomes = [grade.outcome.value for grade in grades]\n"
        "every = [None, None]\ndist.all_gather_object(every, outcomes)\n"
        "if dist.get_rank() == 0: print(every)\ndist.destroy_process_group()\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str([["correct", "timeout"]] * 2) in result.stdout


def test_worker_ends_when_its_parent_is_killed(tmp_path):
    """A worker stuck in algebra does not notice that its standard input closed; its processor-time limit ends it."""
    code = (
        "import sys, time\nfrom data.grading.grader import Grader\ng = Grader()\n"
        f"g.grade({HARD!r}, '6')\nprint(g._workers.idle[0].process.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = Path(f"/proc/{worker}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_a_batch_has_a_limit_of_its_own():
    """What hangs costs its own limit; what has not begun when the batch's is over is a timeout at once."""
    grader = Grader(workers=1, timeout_seconds=0.5)
    assert grader.grade(HARD, "6").correct  # starts the worker
    hanging = [f"{ENDLESS[1]}+{n}" for n in range(10, 30)]
    begun = time.monotonic()
    grades = grader.grade_many([ENDLESS[0]] * 20 + [r"\boxed{5}"], [*hanging, "5"], limit_seconds=1.0)
    seconds = time.monotonic() - begun
    grader.close()
    assert grades[-1].correct  # needs no algebra
    assert [grade.outcome for grade in grades[:-1]] == [Outcome.TIMEOUT] * 20
    assert seconds < 8  # twenty limits of half a second, and a new worker after each, would be more
