"""`transfer view` on studies that are not finished, damaged, restricted or rehearsed; exported pages; the command."""

import base64
import hashlib
import json
import shutil
import signal
import subprocess
import sys

import pytest
import zstandard

from eval.questions.records import Question, write_jsonl
from eval.scorers.records import ScoreRow
from eval.viewer.cell import Cell, Filters
from eval.viewer.study import StudyView
from launch.commands.main import main
from recipes.loading import load_study
from tests.paths import ROOT
from tests.support.viewing import (
    BENCHMARKS,
    GRPO,
    MODELS,
    Scripts,
    api,
    ask,
    copy_of,
    data_of,
    expected,
    rows_of,
    serving,
)

HOSTILE = "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def port(smoke_study):
    with serving(smoke_study) as port:
        yield port


# Studies that are not finished, restricted or rehearsed


def test_an_unfinished_evaluation_shows_what_is_there(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path)
    unit = study / "eval" / GRPO / "sum-native"
    rows = rows_of(smoke_study, GRPO, "sum")
    (chunk,) = unit.glob("chunk-*.zst")
    version = chunk.name.split("-")[2].split(".")[0]
    chunk.unlink()
    entry = {"question": 3, "sample": 1, "text": "half of it", "tokens": 3}
    (unit / f"answers-{version}-worker.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(entry)[:20])
    manifest = json.loads((unit / "manifest.json").read_text())
    (unit / "manifest.json").write_text(json.dumps(manifest | {"completed": None}))
    shutil.rmtree(study / "eval" / GRPO / "story-native")
    view = StudyView(study)
    assert view.index()["notes"] == [f"{GRPO} has not answered all of sum-native"]
    found = view.find(Filters(benchmark="sum", model=GRPO))
    assert [view.summary(*one)["question"] for one in found] == [rows[3]["question_id"]]
    assert view.find(Filters(benchmark="sum", outcome="not_scored")) == found
    assert view.find(Filters(benchmark="sum", model=GRPO, search="HALF")) == found
    shown = view.details(view.summary(*found[0])["id"])
    assert [one["text"] for one in shown["responses"][GRPO]] == ["half of it"]
    assert shown["responses"][GRPO][0]["scores"] == {}
    assert shown["models"][GRPO]["robust"] == {"score": None, "outcomes": ["not_scored"], "change": None}
    assert len(view.find(Filters(benchmark="sum"))) == 10
    assert list(view.details(view.summary(*view.find(Filters(benchmark="story"))[0])["id"])["responses"]) == MODELS[:3]


def test_a_damaged_chunk_is_named_and_the_rest_is_shown(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path)
    (chunk,) = (study / "eval" / GRPO / "sum-native").glob("chunk-*.zst")
    first, second, *rest = rows_of(study, GRPO, "sum")
    write_jsonl(chunk, [second, first, *rest])
    with serving(study) as port:
        status, answer = api(port, "question", id=f"sum/native/{first['question_id']}")
        wrong = f"{second['question_id']} stands in the place of {first['question_id']}"
        assert (status, answer["error"]) == (
            500,
            f"{chunk} is damaged ({wrong}); delete it, and `transfer run` asks its questions again",
        )
        assert api(port, "question", id=f"sum/native/{rest[0]['question_id']}")[0] == 200
    chunk.write_bytes(b"x")
    with serving(study) as port:
        assert api(port, "questions", search="no model ever wrote this")[0] == 500
        assert api(port, "questions")[1]["total"] == 60


def test_a_study_without_responses_is_one_sentence(smoke_study, tmp_path, capsys):
    study = copy_of(smoke_study, tmp_path)
    for folder in (study / "eval", study / "questions"):
        shutil.rmtree(folder)
        assert main(["view", str(study)]) == 2
        error = f"transfer: {study} has no responses yet; `transfer run {study}` asks for them\n"
        assert capsys.readouterr().err == error


def test_other_questions_than_now_are_left_out(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path)
    path = study / "eval" / GRPO / "sum-native" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["questions"] = "0" * 64
    path.write_text(json.dumps(manifest))
    view = StudyView(study)
    assert view.notes == [f"{GRPO} was asked other questions of sum than this study has now"]
    assert GRPO not in view.index()["benchmarks"][0]["models"]


def restrict(study):
    """Make `sum` a benchmark that must not be spread."""
    recipe = json.loads((study / "study.json").read_text())
    data = {"kind": "file", "path": "sum.jsonl", "fields": {"problem": "problem"}, "restricted": True}
    recipe["suite"]["benchmarks"][0]["data"] = data
    (study / "study.json").write_text(json.dumps(recipe))
    assert load_study(study).suite.benchmarks[0].restricted
    path = study / "questions" / "sum.jsonl.zst"
    rows = [json.loads(line) for line in zstandard.decompress(path.read_bytes()).split(b"\n") if line]
    write_jsonl(path, ({"question_id": row["question_id"]} for row in rows))


def test_a_restricted_benchmark_is_never_exported(smoke_study, tmp_path, capsys):
    study = copy_of(smoke_study, tmp_path / "study")
    restrict(study)
    page = tmp_path / "page.html"
    assert main(["view", str(study), "--export", str(page), "--benchmark", "sum"]) == 2
    assert "questions of restricted benchmarks, which must not be spread" in capsys.readouterr().err
    assert not page.exists()
    assert main(["view", str(study), "--export", str(page)]) == 0
    assert capsys.readouterr().out.startswith(f"{page}: 50 of 50 questions, ")
    assert {question["benchmark"] for question in data_of(page)["questions"]} == set(BENCHMARKS[1:])


def test_likelihoods_are_shown_beside_the_given_answers(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path)
    (chunk,) = (study / "eval" / GRPO / "fact-native").glob("chunk-*.zst")
    rows = rows_of(study, GRPO, "fact")
    row = {
        "question_id": rows[0]["question_id"],
        "prompt_hash": "0",
        "answers": ["yes", "no"],
        "likelihoods": [-1, -2.5],
    }
    write_jsonl(chunk, [row, *rows[1:]])
    view = StudyView(study)
    (shown,) = view.details(f"fact/native/{row['question_id']}")["responses"][GRPO]
    assert shown["likelihoods"] == [["yes", -1], ["no", -2.5]]
    assert list(shown["scores"]) == ["paper", "robust"]


def test_thinking_stands_apart_from_the_answer(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path)
    (chunk,) = (study / "eval" / GRPO / "copy-native").glob("chunk-*.zst")
    rows = rows_of(study, GRPO, "copy")
    rows[0] |= {"responses": ["<think>Hm.</think>\n7", "no thinking"]}
    rows[1] |= {"responses": ["Hm.</think>7", "never ends"], "opens_thinking": True}
    write_jsonl(chunk, rows)
    view = StudyView(study)
    shown = [view.details(f"copy/native/{row['question_id']}")["responses"][GRPO] for row in rows[:2]]
    parts = [(one["thinking"], one["text"]) for responses in shown for one in responses]
    assert parts == [("Hm.", "7"), (None, "no thinking"), ("Hm.", "7"), ("never ends", "")]


def test_a_rehearsal_says_so(smoke_study, tmp_path, port):
    study = copy_of(smoke_study, tmp_path / "study")
    assert "REHEARSAL" not in ask(port, "/")[1].decode()
    recipe = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(recipe | {"rehearsal": True}))
    assert main(["view", str(study), "--export", str(tmp_path / "page.html"), "--limit", "1"]) == 0
    assert '<p class="rehearsal">REHEARSAL: ' in (tmp_path / "page.html").read_text()


def test_parts_that_are_judged_together_have_the_score_of_the_whole():
    parts = [Question(name, {}, "yes", unit="whole") for name in ("a", "b")]
    scores = {
        "base": {"robust": {"whole": [ScoreRow("whole", "whole", 0, 0.0, "wrong")]}},
        "new": {"robust": {"whole": [ScoreRow("whole", "whole", 0, 0.5, "partial")]}},
    }
    cell = Cell(None, "native", "robust", parts, dict.fromkeys(scores), {}, scores)
    assert [cell.mean("new", "robust", part) for part in parts] == [50, 50]
    assert [cell.change("new", "robust", part) for part in parts] == ["won", "won"]
    assert cell.outcomes("new", "robust", 1) == ["partial"]


# The exported page


def test_a_response_that_is_markup_stays_text(smoke_study, tmp_path, capsys):
    study = copy_of(smoke_study, tmp_path / "study")
    (chunk,) = (study / "eval" / GRPO / "sort-native").glob("chunk-*.zst")
    rows = rows_of(study, GRPO, "sort")
    rows[4]["responses"][1] = HOSTILE
    write_jsonl(chunk, rows)
    page = tmp_path / "page.html"
    words = ["--benchmark", "sort", "--model", GRPO, "--search", "HACKED = 1", "--json"]
    assert main(["view", str(study), "--export", str(page), *words]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(page), "questions": 1, "found": 1}
    scripts = Scripts()
    scripts.feed(page.read_text())
    assert (scripts.tags.count("script"), scripts.tags.count("img")) == (2, 0)
    assert "<!--" not in page.read_text()
    (question,) = json.loads(scripts.texts[0])["questions"]
    assert question["responses"][GRPO][1]["text"] == HOSTILE
    assert question == StudyView(study).details(f"sort/native/{rows[4]['question_id']}")
    # The policy of the page lets its own script run and nothing else, also without a server.
    own = base64.b64encode(hashlib.sha256(scripts.texts[1].encode()).digest()).decode()
    assert scripts.policy.startswith(f"default-src 'none'; script-src 'sha256-{own}'; style-src 'sha256-")


def test_an_export_holds_the_slice_up_to_the_limit(smoke_study, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("an older page")
    wanted = expected(smoke_study, GRPO, outcome="wrong")
    assert main(["view", str(smoke_study), "--export", str(page), "--model", GRPO, "--outcome", "wrong"]) == 0
    assert capsys.readouterr().out.startswith(f"{page}: {len(wanted)} of {len(wanted)} questions, ")
    assert sorted(question["id"] for question in data_of(page)["questions"]) == wanted
    assert data_of(page)["index"]["notes"][-1].endswith(f" questions; model {GRPO}, outcome wrong")
    assert main(["view", str(smoke_study), "--export", str(page), "--limit", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{page}: 3 of 60 questions, ")
    assert shown.endswith(" kB\n")
    assert abs(1000 * int(shown.split()[-2].replace(",", "")) - page.stat().st_size) <= 500
    assert len(data_of(page)["questions"]) == 3
    assert '<p class="note">3 of 60 questions</p>' in page.read_text()


# The command


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "gpt"], "model 'gpt' has no responses in "),
        (["--scoring", "loose"], "scoring 'loose' has no responses in "),
        (["--outcome", "right"], "outcome 'right' has no responses in "),
        (["--limit", "0"], "--limit is 0 but must be 1 or more"),
        (["--port", "70000"], "port 70000 cannot be used: ports are 0 to 65535; without --port a free one is taken"),
        (["--export", "x.jsonl"], "--export is x.jsonl, but what it writes is a page; name it x.html"),
        (["--export", "PAGE", "--search", "never written"], "was not written: no question passes; change the filters"),
    ],
)
def test_mistakes_are_one_sentence(smoke_study, tmp_path, capsys, words, sentence):
    words = [word.replace("PAGE", str(tmp_path / "page.html")) for word in words]
    assert main(["view", str(smoke_study), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_named(smoke_study, port, capsys):
    assert main(["view", str(smoke_study), "--port", str(port)]) == 2
    assert f"port {port} cannot be used: Address already in use" in capsys.readouterr().err


def heed_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_it_with_status_0(smoke_study):
    command = [sys.executable, "-m", "launch", "view", str(smoke_study), "--model", GRPO, "--change", "lost"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts commands in the background with Ctrl-C ignored, and the tests may be one.
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_interrupts, **pipes) as process:
        line = process.stdout.readline()
        url, _, chosen = line.split(" at ")[1].partition(" (")[0].partition("#")
        assert line.startswith("smoke: 4 models at http://127.0.0.1:")
        assert chosen == f"model={GRPO}&change=lost"
        assert ask(int(url.rstrip("/").rpartition(":")[2]), "/api/index")[0].status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
