"""`transfer view`: what the server and the exported page hold, against the stored files read without this package."""

import base64
import contextlib
import hashlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest
import zstandard

from eval.questions.records import Question, write_jsonl
from eval.scorers.records import ScoreRow
from eval.viewer.cell import Cell, Filters
from eval.viewer.server import ViewServer
from eval.viewer.study import StudyView
from launch.commands.main import main
from recipes.loading import load_study

ROOT = Path(__file__).resolve().parent.parent
MODELS = ["base", *(f"{arm}-seed0-final" for arm in ("off_policy_sft", "on_policy_sft", "grpo"))]
BENCHMARKS = ("sum", "story", "sort", "logic", "copy", "fact")
GRPO = MODELS[-1]
HOSTILE = "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 1'>"


def rows_of(study, model, benchmark):
    """Stored rows of a unit, read here."""
    (chunk,) = (study / "eval" / model / f"{benchmark}-native").glob("chunk-*.zst")
    return [json.loads(line) for line in zstandard.decompress(chunk.read_bytes()).split(b"\n") if line]


def table_of(study, model, benchmark, scoring="robust"):
    """question -> [(value, outcome, answer)], read here."""
    path = study / "eval" / model / f"{benchmark}-native" / f"scores-{scoring}.parquet"
    table = {}
    for row in sorted(pq.read_table(path).to_pylist(), key=lambda row: row["sample_index"]):
        table.setdefault(row["question_id"], []).append((row["value"], row["outcome"], row["answer"]))
    return table


@contextlib.contextmanager
def serving(study):
    """The port of a server of this study."""
    with ViewServer(StudyView(study)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(smoke_study):
    with serving(smoke_study) as port:
        yield port


def ask(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def api(port, path, **query):
    answer, content = ask(port, f"/api/{path}?{urlencode(query)}")
    return answer.status, json.loads(content)


def copy_of(study, folder):
    for name in ("eval", "questions"):
        shutil.copytree(study / name, folder / name)
    shutil.copy(study / "study.json", folder)
    return folder


# What is served


def test_a_question_has_the_stored_texts_scores_and_answers(smoke_study, port):
    for benchmark in BENCHMARKS:
        stored = {model: rows_of(smoke_study, model, benchmark) for model in MODELS}
        tables = {model: table_of(smoke_study, model, benchmark) for model in MODELS}
        for position in (0, 9):
            first = stored["base"][position]
            status, shown = api(port, "question", id=f"{benchmark}/native/{first['question_id']}")
            assert status == 200
            assert shown["prompt"] == first["prompt"]
            assert list(shown["responses"]) == MODELS
            for model in MODELS:
                row, found = stored[model][position], shown["responses"][model]
                assert [one["text"] for one in found] == row["responses"]
                assert [one["tokens"] for one in found] == row["tokens"]
                scores = [one["scores"]["robust"] for one in found]
                judged = [(one["score"] / 100, one["outcome"], one["answer"]) for one in scores]
                assert judged == tables[model][row["question_id"]]
                paper = table_of(smoke_study, model, benchmark, "paper")[row["question_id"]]
                assert [one["scores"]["paper"]["outcome"] for one in found] == [outcome for _, outcome, _ in paper]


def test_the_explanation_is_that_of_the_grade_command(smoke_study, port, tmp_path, capsys):
    row = next(row for row in rows_of(smoke_study, "base", "sum") if "\\boxed{" in row["responses"][0])
    _, shown = api(port, "question", id=f"sum/native/{row['question_id']}")
    (tmp_path / "response").write_text(row["responses"][0])
    main(["grade", "--gold", shown["reference"], "--response", str(tmp_path / "response"), "--explain"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["responses"]["base"][0]["scores"]["robust"]["why"] == [
        f"answer read as {lines['answer read as'].strip()}",
        f"reference read as {lines['gold read as'].strip()}",
        f"decided by {lines['decided by'].strip()!r}",
    ]
    assert shown["responses"]["base"][0]["scores"]["paper"]["why"] == []
    assert shown["rules"]["paper"]["rule"] == "last_box_text"
    assert shown["rules"]["paper"]["text"].startswith("By the last box in the whole response")


def test_the_index_names_models_benchmarks_and_counts(smoke_study, port):
    status, index = api(port, "index")
    assert status == 200
    assert [model["label"] for model in index["models"]] == MODELS
    assert [(cell["benchmark"], cell["questions"]) for cell in index["benchmarks"]] == [(b, 10) for b in BENCHMARKS]
    assert index["benchmarks"][0]["scorings"] == {"paper": "last_box_text", "robust": "boxed"}
    assert not index["notes"]
    tables = [table_of(smoke_study, model, benchmark) for model in MODELS for benchmark in BENCHMARKS]
    outcomes = [outcome for table in tables for rows in table.values() for _, outcome, _ in rows]
    assert index["outcomes"] == {name: outcomes.count(name) for name in index["outcomes"]}
    assert sum(index["outcomes"].values()) == 4 * 6 * 10 * 2


def expected(study, model, change="", outcome="", scoring="robust"):
    """Questions that pass, by the score tables alone."""
    found = []
    for benchmark in BENCHMARKS:
        base = table_of(study, "base", benchmark, scoring)
        for question, rows in table_of(study, model, benchmark, scoring).items():
            before, after = (sum(value for value, _, _ in one) for one in (base[question], rows))
            moved = "won" if after > before else "lost" if after < before else "same"
            if change in ("", moved) and (not outcome or outcome in [name for _, name, _ in rows]):
                found.append(f"{benchmark}/native/{question}")
    return sorted(found)


def listed(port, **query):
    status, found = api(port, "questions", **{"limit": 500} | query)
    assert status == 200, found
    assert found["total"] == len(found["items"])
    return sorted(item["id"] for item in found["items"])


def test_filters_find_what_the_score_tables_say(smoke_study, port):
    sizes = []
    for model in MODELS[1:]:
        for change in ("won", "lost", "same"):
            for outcome in ("", "correct", "wrong", "truncated", "no_answer"):
                for scoring in ("robust", "paper"):
                    query = {"model": model, "change": change, "outcome": outcome, "scoring": scoring}
                    wanted = expected(smoke_study, **query)
                    assert listed(port, **query) == wanted, query
                    sizes.append(len(wanted))
    assert len(set(sizes)) > 5  # the study is not so small that every filter finds the same
    assert listed(port, model="base", change="same") == []  # the base is not compared with itself
    won = [set(expected(smoke_study, model, "won")) for model in MODELS[1:]]
    assert listed(port, change="won") == sorted(set.union(*won))  # any model
    assert listed(port, benchmark="sort") == [name for name in expected(smoke_study, "base") if name[:5] == "sort/"]


def test_the_search_reads_questions_and_responses_of_the_chosen_model(smoke_study, port):
    word = rows_of(smoke_study, GRPO, "copy")[0]["responses"][0].split()[0]
    questions = {
        row["question_id"]: row["fields"]["problem"] + str(row["reference"])
        for row in map(
            json.loads,
            filter(
                None,
                zstandard.decompress((smoke_study / "questions" / "copy.jsonl.zst").read_bytes()).split(b"\n"),
            ),
        )
    }
    wanted = sorted(
        f"copy/native/{row['question_id']}"
        for row in rows_of(smoke_study, GRPO, "copy")
        if word.lower() in " ".join([row["question_id"], questions[row["question_id"]], *row["responses"]]).lower()
    )
    assert wanted
    assert listed(port, benchmark="copy", model=GRPO, search=word.upper()) == wanted
    assert listed(port, search="no model ever wrote this") == []


def test_pages_join_to_the_whole_list(port):
    whole = api(port, "questions", limit=500)[1]
    assert whole["total"] == 60
    pages = [api(port, "questions", offset=offset, limit=25)[1]["items"] for offset in (0, 25, 50, 75)]
    assert [len(page) for page in pages] == [25, 25, 10, 0]
    assert [item for page in pages for item in page] == whole["items"]


# What is refused


def test_only_this_machine_by_its_own_name_is_answered(port):
    for host in ("127.0.0.1", "localhost", f"localhost:{port}", "127.0.0.1:1"):
        assert ask(port, "/", Host=host)[0].status == 200, host
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "localhost:1:2"):
        answer, content = ask(port, "/api/index", Host=host)
        assert answer.status == 403, host
        assert json.loads(content) == {"error": "this server answers to 127.0.0.1 and localhost only"}


def test_other_methods_paths_and_values_are_refused_as_json(port):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        answer, content = ask(port, "/api/index", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
        assert json.loads(content) == {"error": f"{method} is not allowed, only GET"}
    assert ask(port, "/", "HEAD")[0].status == 405
    assert ask(port, "/../../etc/passwd")[0].status == 404
    assert api(port, "nothing")[0] == 404
    for identity in ("", "sum", "sum/native/none", "none/native/x", "../../x"):
        assert api(port, "question", id=identity) == (404, {"error": f"there is no question {identity!r}"})
    assert api(port, "questions", limit="-1")[1] == {"error": "limit is '-1' but must be a whole number, 0 or more"}
    status, answer = api(port, "questions", model="gpt")
    assert status == 400
    assert answer["error"].startswith("model 'gpt' has no responses in ")
    assert answer["error"].endswith(f"there are {', '.join(MODELS)}")


def test_the_policy_lets_nothing_but_the_page_itself_run(port):
    answer, page = ask(port, "/")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    script = page.decode().rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "innerHTML" not in script


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


class Scripts(HTMLParser):
    """Elements of a page, and the texts of its scripts, as a browser splits them."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.policy = [""], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if ("http-equiv", "Content-Security-Policy") in attributes:
            self.policy = dict(attributes)["content"]

    def handle_data(self, data):
        if self.tags[-1] == "script" and data.strip():
            self.texts.append(data)


def data_of(path):
    scripts = Scripts()
    scripts.feed(path.read_text())
    return json.loads(scripts.texts[0])


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
    assert capsys.readouterr().out.startswith(f"{page}: 3 of 60 questions, ")
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


def test_ctrl_c_ends_it_with_status_0(smoke_study):
    command = [sys.executable, "-m", "launch", "view", str(smoke_study), "--model", GRPO, "--change", "lost"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        url, _, chosen = line.split(" at ")[1].partition(" (")[0].partition("#")
        assert line.startswith("smoke: 4 models at http://127.0.0.1:")
        assert chosen == f"model={GRPO}&change=lost"
        assert ask(int(url.rstrip("/").rpartition(":")[2]), "/api/index")[0].status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
