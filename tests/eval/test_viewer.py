"""The server of `transfer view`: what it holds, against the stored files read without its package; what it refuses."""

import base64
import hashlib
import json

import pytest
import zstandard

from launch.commands.main import main
from tests.support.viewing import (
    BENCHMARKS,
    GRPO,
    MODELS,
    api,
    ask,
    expected,
    rows_of,
    serving,
    table_of,
)


@pytest.fixture(scope="module")
def port(smoke_study):
    with serving(smoke_study) as port:
        yield port


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
        f'decided by the rule "{lines["decided by"].strip()}"',
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
