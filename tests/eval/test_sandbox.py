"""Hostile programs. Needs bubblewrap; where it is missing only the refusal is tested."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from eval.report.certificate import evaluation_differences
from eval.scorers import sandbox
from eval.scorers.rules import score
from eval.scorers.sandbox import Limits, run_program, without_user_namespaces
from recipes.errors import UserError

LIMITS = Limits(wall_seconds=3.0, cpu_seconds=2, output_bytes=1 << 20)


def works():
    try:
        sandbox.require_sandbox()
    except UserError as error:
        return str(error)
    return None


needs_sandbox = pytest.mark.skipif(works() is not None, reason=f"no working sandbox here: {works()}")


@needs_sandbox
def test_a_harmless_program_runs():
    ended = run_program("print(int(input()) + 1)", "41\n", LIMITS)
    assert (ended.status, ended.stdout) == ("ok", "42\n")
    assert run_program("raise ValueError('no')", "", LIMITS).status == "crash"


NAMESPACE = "a user namespace of its own"
HOSTILE = {
    "endless output": ("while True: print('x' * 1000)", "output", ""),
    "memory hog": ("x = []\nwhile True: x.append(bytearray(400 << 20))", "crash", "MemoryError"),
    "endless loop": ("while True: pass", "timeout", ""),
    "ignores SIGTERM": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)",
        "timeout",
        "",
    ),
    "writes outside": ("open('/usr/x', 'w')", "crash", "Read-only file system"),
    "writes to the root": ("open('/x', 'w')", "crash", "Read-only file system"),
    "fills its scratch": (
        "for i in range(200): open(f'/tmp/{i}', 'wb').write(bytes(1 << 19))",
        "crash",
        "No space left on device",
    ),
    "fills shared memory": (
        "for i in range(200): open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 19))",
        "crash",
        "No space left on device",
    ),
    "writes to /dev": ("open('/dev/x', 'w')", "crash", "Read-only file system"),
    "a large file": ("open('/tmp/x', 'wb').write(bytes(8 << 20))", "crash", "File too large"),
    "the internet": (
        "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)",
        "crash",
        "unreachable",
    ),
    NAMESPACE: (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000):\n"
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
        "crash",
        "No space left on device",
    ),
    "reads /etc": ("print(open('/etc/passwd').read())", "crash", "No such file"),
}


@needs_sandbox
def test_versions_are_those_that_programs_see():
    versions = sandbox.sandbox_versions()
    assert list(versions) == ["python", "numpy"]
    seen = run_program("import sys\nprint('%d.%d.%d' % sys.version_info[:3])", "", LIMITS)
    assert versions["python"] == seen.stdout.strip()
    imported = run_program("import numpy\nprint(numpy.__version__)", "", LIMITS)
    assert versions["numpy"] == (imported.stdout.strip() if imported.status == "ok" else "absent")


def test_an_evaluation_with_another_python_in_the_sandbox_is_named(tmp_path):
    def evaluated(label, **unit):
        manifest = {"code": "c", "environment": {"packages": {"torch": "2"}}, "facts": {"units": {"lcb-native": unit}}}
        (tmp_path / "eval" / label).mkdir(parents=True)
        (tmp_path / "eval" / label / "manifest.json").write_text(json.dumps(manifest))

    evaluated("base", sandbox={"python": "3.11.2", "numpy": "absent"})
    evaluated("rl", sandbox={"python": "3.11.2", "numpy": "absent"})
    assert evaluation_differences(tmp_path, ["base", "rl"]) == []
    evaluated("sft", sandbox={"python": "3.12.3", "numpy": "absent"})
    (said,) = evaluation_differences(tmp_path, ["base", "rl", "sft"])
    assert said == "evaluation: sft by other code or packages than base"


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name):
    if name == NAMESPACE and not without_user_namespaces():
        pytest.skip("this bubblewrap cannot forbid user namespaces: it is older than 0.8, or setuid")
    program, status, said = HOSTILE[name]
    begun = time.monotonic()
    ended = run_program(program, "", LIMITS)
    assert ended.status == status, ended
    assert said in ended.stderr
    assert time.monotonic() - begun < LIMITS.wall_seconds + 3
    assert len(ended.stdout) <= LIMITS.output_bytes


@needs_sandbox
def test_fork_bomb_is_contained_and_leaves_nothing():
    program = "import os, time\nn = 1\nwhile True:\n    try:\n        os.fork()\n    except OSError: time.sleep(0.1)"
    marker = f"fork-{os.getpid()}-{time.monotonic_ns()}"
    ended = run_program(f"# {marker}\nimport sys\nsys.argv[0] = {marker!r}\n{program}", "", LIMITS)
    assert ended.status == "timeout"

    def left():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it ended meanwhile
                found += [path] if b"/code/program.py" in path.read_bytes() else []
        return found

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:  # the kernel takes a namespace down in its own time
        time.sleep(0.1)
    assert left() == []


@needs_sandbox
def test_number_of_processes_is_limited():
    program = (
        "import os, time\nchildren = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(30)\n"
        "        children += 1\nexcept OSError: print(children, flush=True)"
    )
    ended = run_program(program, "", LIMITS)
    assert 0 < int(ended.stdout) < LIMITS.processes


def test_a_process_may_start_more_threads_than_there_are_users():
    taken = [next(sandbox._users_taken) for _ in range(5000)]
    assert (min(taken), max(taken)) == (61001, 65096)


@needs_sandbox
def test_home_folder_and_other_processes_are_out_of_sight(tmp_path):
    secret = Path.home() / f".transfer-test-{os.getpid()}"
    secret.write_text("secret")
    try:
        ended = run_program(f"print(open({str(secret)!r}).read())", "", LIMITS)
    finally:
        secret.unlink()
    assert ended.status == "crash"
    assert "secret" not in ended.stdout
    ended = run_program("import os; print(sum(name.isdigit() for name in os.listdir('/proc')))", "", LIMITS)
    assert int(ended.stdout) <= 3
    ended = run_program("import os; print(sorted(os.environ))", "", LIMITS)
    assert set(eval(ended.stdout)) <= {"HOME", "PATH", "OMP_NUM_THREADS", "PWD", "LC_CTYPE"}


@needs_sandbox
def test_servers_of_this_machine_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = run_program(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)", "", LIMITS)
    assert ended.status == "crash"
    assert "Connection refused" in ended.stderr


STDIN = {
    "public": '[{"input": "2 3", "output": "5", "testtype": "stdin"}]',
    "private": '[{"input": "0 0", "output": "0", "testtype": "stdin"}]',
    "function": None,
}
CALL = {
    "public": '[{"input": "[1, 2]\\n3", "output": "[1, 2, 3]", "testtype": "functional"}]',
    "private": "[]",
    "function": "join",
}

CHECK = {
    "prompt": 'def half(x):\n    return x / 2\n\n\ndef quarter(x: float) -> float:\n    """Return x / 4."""\n',
    "entry_point": "quarter",
    "test": "def check(candidate):\n    assert candidate(8) == 2, 'eight'\n    assert candidate(-4) == -1\n",
}


@needs_sandbox
@pytest.mark.parametrize(
    ("response", "reference", "value", "answer"),
    [
        ("```python\ndef quarter(x):\n    return half(half(x))\n```", CHECK, 1, None),
        ("```python\n    return x / 4\n```", CHECK, 1, None),
        ("```python\ndef quarter(x):\n    return x * pow(4, -1, 8191) % 8191 if x == 8 else -1\n```", CHECK, 1, None),
        ("```python\ndef quarter(x):\n    return abs(x) / 4\n```", CHECK, 0, "test 1: crash AssertionError"),
        ("```python\ndef quarter(x):\n    return x\n```", CHECK, 0, "test 1: crash AssertionError: eight"),
        ("```python\ndef other(x):\n    return x / 4\n```", CHECK, 0, "test 1: crash AssertionError: eight"),
        ("```python\nprint('checks passed: 0')\nexit(0)\n```", CHECK, 0, "test 1: ended before the checks"),
        ("```python\nprint(sum(map(int, input().split())))\n```", STDIN, 1, None),
        (
            "<think>```python\nprint(1)\n```</think>\n```python\nprint(sum(map(int, input().split())))\n```",
            STDIN,
            1,
            None,
        ),
        ("```python\nprint(5)\n```", STDIN, 0, "test 2: wrong output"),
        ("```python\nprint(1/0)\n```", STDIN, 0, "test 1: crash ZeroDivisionError: division by zero"),
        ("print(5)", STDIN, 0, None),
        ("```python\nclass Solution:\n    def join(self, a, b): return a + [b]\n```", CALL, 1, None),
        ("```python\nclass Solution:\n    def join(self, a, b): return (*a, b)\n```", CALL, 1, None),
        ("```python\nclass Solution:\n    def join(self, a, b): return a\n```", CALL, 0, "test 1: wrong result"),
        ("```python\nclass Solution:\n    def other(self): return 1\n```", CALL, 0, "test 1: crash AttributeError: "),
        (
            "```python\nimport os\nclass Solution:\n    def join(self, a, b): os._exit(0)\n```",
            CALL,
            0,
            "test 1: no result",
        ),
    ],
)
def test_programs_are_judged_by_their_tests(response, reference, value, answer):
    result = score(response, reference, "code")
    assert result.value == value
    assert (result.answer or "").startswith(answer or "")
    assert (result.outcome == "no_answer") == (response == "print(5)")


QUARTER = "def quarter(x):\n    return x / 4\n"
JOIN = "class Solution:\n    def join(self, a, b): return a + [b]\n"
SUM = "print(sum(map(int, input().split())))\n"
UNITTEST = "import unittest\nclass T(unittest.TestCase):\n    def test(self): assert {0}\n"
TAGGED = (
    "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar, NamedTuple\n"
    "@dataclass\nclass Pair:\n    tag: ClassVar[int]\n    a: int\nclass Name(NamedTuple):\n    a: int\n"
)
GUARD = "if __name__ == '__main__':\n    {0}\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "reference", "value"),
    [
        # A main guard runs where standard input is given, and not where a function is called.
        (QUARTER + UNITTEST.format(True) + GUARD.format("unittest.main()"), CHECK, 1),
        (QUARTER + UNITTEST.format(False) + GUARD.format("unittest.main()"), CHECK, 1),
        (QUARTER + GUARD.format("print(quarter(int(input())))"), CHECK, 1),
        (GUARD.format("quarter = lambda x: x / 4"), CHECK, 0),  # a function that only the guard would define
        (QUARTER.replace("4", "3") + GUARD.format("pass"), CHECK, 0),
        (QUARTER + "int(input())\n", CHECK, 0),
        (JOIN + GUARD.format("print(Solution().join([int(input())], 1))"), CALL, 1),
        (JOIN.replace("[b]", "[]") + GUARD.format("pass"), CALL, 0),
        (f"def main():\n    {SUM}{GUARD.format('main()')}", STDIN, 1),
        (f"def main():\n    {SUM.replace('sum', 'max')}{GUARD.format('main()')}", STDIN, 0),
        # Classes that look their module up.
        (TAGGED + QUARTER, CHECK, 1),
        (TAGGED + JOIN, CALL, 1),
        (TAGGED + SUM, STDIN, 1),
    ],
)
def test_main_guards(program, reference, value):
    assert score(f"```python\n{program}```", reference, "code").value == value


@needs_sandbox
@pytest.mark.parametrize("indented", ["   ", "    ", "\t"])
@pytest.mark.parametrize(("program", "reference"), [(QUARTER, CHECK), (JOIN, CALL), (SUM, STDIN)])
def test_blocks_of_a_list_and_blocks_with_a_margin(indented, program, reference):
    block = "".join(f"{indented}{line}\n" for line in program.splitlines())
    assert score(f"1. So:\n\n{indented}```python\n{block}{indented}```", reference, "code").value == 1
    assert score(f"1. ```python\n{block}{indented}```", reference, "code").value == 1
    assert score(f"```python\n{block}```", reference, "code").value == 1
    wrong = block.replace("4", "3").replace("[b]", "[]").replace("sum", "max")
    assert score(f"1. So:\n\n{indented}```python\n{wrong}{indented}```", reference, "code").value == 0


def test_without_a_sandbox_code_is_refused_unless_the_user_insists(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda *arguments, **options: None)
    with pytest.raises(UserError, match=r"bubblewrap \(bwrap\) is not installed.*suite.allow_unsandboxed_code=true"):
        sandbox.require_sandbox.__wrapped__()


def test_unsandboxed_code_still_has_limits():
    ended = run_program("while True: pass", "", Limits(wall_seconds=5, cpu_seconds=1), sandboxed=False)
    assert ended.status == "timeout"
    assert score("```python\nprint(sum(map(int, input().split())))\n```", STDIN, "code", sandboxed=False).value == 1
