"""The twelve benchmarks on rows made up for them: every task file renders, is asked and is scored in every reading.

The model is the pocket base, which cannot answer; the responses that are scored are put in its place.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
import zstandard

from eval.questions import build as questions
from eval.questions.build import load_questions, read_source_questions
from eval.responses import generate
from eval.responses.readings import read_cell
from eval.responses.units import open_units
from eval.scorers.records import write_responses
from eval.scorers.sandbox import require_sandbox
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from tests.paths import RECIPES, SMOKE

TWELVE = RECIPES / "suites" / "twelve.yaml"
EMPTY = dict.fromkeys(("question", "answer", "dialogue_history", "response", "document", "summary", "knowledge"))
TEST = json.dumps([{"input": "2 3", "output": "5", "testtype": "stdin"}])


def code_row(name):
    return {
        "question_id": name,
        "question_title": name,
        "question_content": f"Add two numbers ({name}).",
        "starter_code": "",
        "public_test_cases": TEST,
        "private_test_cases": "[]",
        "metadata": "{}",
        "contest_date": "2024-01-01",
    }


def gpqa_row(name):
    options = {f"Incorrect Answer {n}": f"wrong {n} of {name}" for n in (1, 2, 3)}
    return {"Question": f"SECRET question {name}?", "Correct Answer": f"right of {name}", **options}


def plan_row(name):
    return {
        "id": name,
        "context": f"Context {name}.",
        "question": "Which is valid? A. x B. y",
        "query": "Which?",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answer": "B",
        "group": "validation_mcq",
    }


ROWS = {
    "math500": [{"problem": f"What is {n}+1?", "answer": str(n + 1), "unique_id": n} for n in range(2)],
    "aime24": [{"Problem": f"What is {n}+2?", "Answer": n + 2, "ID": n} for n in range(2)],
    "aime25": [{"problem": f"What is {n}+3?", "answer": str(n + 3)} for n in range(2)],
    "olympiadbench": [
        {
            "question": f"Which numbers {n}?",
            "context": "Shared context.",
            "final_answer": ["$1$,$2$"],
            "is_multiple_answer": True,
            "unit": None,
            "error": None,
            "answer_type": "Numerical",
        }
        for n in range(2)
    ],
    "livecodebench": [code_row("a"), code_row("b")],
    "gpqa": [gpqa_row("a"), gpqa_row("b")],
    "acpbench": [plan_row("a"), plan_row("b")],
    "headqa": [
        {"qtext": f"Q{n}?", "ra": 1, "answers": [{"aid": 1, "atext": "yes"}, {"aid": 2, "atext": "no"}]}
        for n in range(2)
    ],
    "coqa": [
        {
            "story": f"A cat sat on mat {n}.",
            "questions": {"input_text": ["Who?", "Where?"]},
            "answers": {"input_text": ["a cat", "on a mat"]},
            "additional_answers": None,
        }
        for n in range(2)
    ],
    "ifeval": [
        {"key": n, "prompt": f"No commas {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(2)
    ],
    "halueval": [
        EMPTY | {"knowledge": "k", "question": "q", "answer": "a", "hallucination": "yes"},
        EMPTY | {"knowledge": "k", "dialogue_history": "h", "response": "r", "hallucination": "no"},
        EMPTY | {"document": "d", "summary": "s", "hallucination": "no"},
    ],
    "mctaco": [
        {"sentence": "s", "question": "q", "answer": "a day", "label": "yes", "category": "x"},
        {"sentence": "s", "question": "q", "answer": "a year", "label": "no", "category": "x"},
    ],
}
# Responses to the first and second question: right in substance and in the paper's form, or in one of them, or neither.
RESPONSES = {
    "math500": (["\\boxed{1.0}", "\\boxed{2}"], {"paper": 0.5, "robust": 1}),
    "aime24": (["\\boxed{02}", "<think>\\boxed{3}"], {"paper": 0.5, "robust": 0.5}),
    "aime25": (["3", "\\boxed{4}"], {"paper": 0.5, "robust": 0.5}),
    "olympiadbench": (["\\boxed{2, 1}", "\\boxed{1,2}"], {"paper": 0, "robust": 1}),
    "livecodebench": (
        ["```python\nprint(sum(map(int, input().split())))\n```", "```python\nprint(4)\n```"],
        {"paper": 0.5, "robust": 0.5},
    ),
    "gpqa": (["The answer is {0}.", "\\boxed{{{1}}}"], {"paper": 0.5, "robust": 1}),
    "acpbench": (["\\boxed{B}. Done", "B"], {"paper": 0.5, "robust": 1}),
    "coqa": (["Answer: on a mat", "on mat\nbecause"], {"paper": 0.5, "robust": 1}),
    "ifeval": (["no commas here", "well, no"], {"paper": 0.5, "robust": 0.5}),
    "halueval": (["<think>Hm.</think>\nYes", "No", "no"], {"paper": 1 / 3, "robust": 1}),
    "mctaco": (["yes", "<think>x</think>no"], {"robust": 1}),
}


def sandbox_works():
    """The programs here are ours and harmless, so that without a sandbox they still run."""
    try:
        require_sandbox()
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def suite(smoke_study, tmp_path_factory):
    """A study of one model that was asked all twelve benchmarks, and its recipe."""
    folder = tmp_path_factory.mktemp("suite")
    listed = yaml.safe_load(TWELVE.read_text())["suite"]["benchmarks"]
    for benchmark in listed:
        path = folder / f"{benchmark['name']}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[benchmark["name"]]))
        data = benchmark["data"] | {"kind": "file", "path": str(path)}
        for key in ("dataset", "revision", "files", "alternatives", "published_rows", "rows", "columns"):
            data.pop(key, None)
        benchmark["data"] = data
    overrides = ["arms={}", "train=null", "suite.tasks=twelve", f"suite.benchmarks={json.dumps(listed)}"]
    overrides += ["suite.max_prompt_tokens=8192", "suite.max_response_tokens=2", "prompt.suffix=' Box it.'"]
    overrides += [
        f"suite.allow_unsandboxed_code={json.dumps(not sandbox_works())}",
        "suite.top_p=0.95",
        "suite.temperature=0.6",
        "suite.samples_per_question=2",
    ]
    recipe = load_recipe(SMOKE, overrides)
    study = folder / "study"
    study.mkdir()
    for name in ("base", "corpus"):
        (study / name).symlink_to(smoke_study / name)
    start_stage(study / "questions", "questions", {})
    questions.run(recipe, study, study / "questions", False)
    start_stage(study / "eval" / "base", "eval/base", {}, in_place=True)
    generate.run(recipe, study, study / "eval" / "base", False, "base")
    return recipe, study


def units_of(recipe, study):
    return {unit.name: unit for unit in open_units(recipe, study, study / "eval" / "base", "base")}


def test_every_prompting_is_asked(suite):
    recipe, study = suite
    units = units_of(recipe, study)
    assert set(units) == {f"{b.name}-{p}" for b in recipe.suite.benchmarks for p in b.promptings}
    assert len(units) == 25
    prompts = {name: unit.rows()[0].prompt or "" for name, unit in units.items()}
    assert "What is 0+1? Box it.<|im_end|>" in prompts["math500-robust"]
    assert (
        "\nWhat is 0+1?\n\nPlease reason step by step, and put your final answer within \\boxed."
        in prompts["math500-paper"]
    )
    assert "Shared context.\n\nWhich numbers 0? Box it." in prompts["olympiadbench-robust"]
    assert "Problem: Which numbers 0?\nAnswer:" in prompts["olympiadbench-paper"]
    assert "A cat sat on mat 0.\n\nQ: Who?\n\nA: a cat\n\nQ: Where?\n\nA:<|im_end|>" in prompts["coqa-paper"]
    assert "Output only all the answers" in prompts["coqa-paper_instructed"]
    assert prompts["acpbench-few_shot"].startswith("**Question**: ")
    assert "<|im_start|>" not in prompts["acpbench-few_shot"]  # no chat template: a base goes on writing
    assert prompts["acpbench-few_shot"].endswith("**Question**: Context a.  Which is valid? A. x B. y **Thoughts**:")
    assert prompts["acpbench-few_shot"].count("**Final Answer**") == 2
    assert "<|im_start|>user\n**Question**: " in prompts["acpbench-paper"]
    assert prompts["headqa-paper"].endswith("<|im_start|>assistant\n")
    assert "Plausible:<|im_end|>" in prompts["mctaco-paper"]
    assert "#Question#: q\n#Answer#: a\n#Your Judgement#:" in prompts["halueval-paper"]
    assert "Dialogue: h\nResponse: r" in units["halueval-robust"].rows()[1].prompt
    assert "#Document#: d\n#Summary#: s" in units["halueval-paper"].rows()[2].prompt
    assert {len(row.responses) for row in units["aime24-robust"].rows()} == {16}
    assert {len(row.responses) for row in units["math500-robust"].rows()} == {2}
    assert {len(row.responses) for row in units["coqa-robust"].rows()} == {1}


def test_likelihoods_are_stored_and_judged(suite):
    recipe, study = suite
    for name in ("headqa-paper", "mctaco-paper"):
        for row in units_of(recipe, study)[name].rows():
            assert len(row.likelihoods) == len(row.answers) == 2
            assert all(value < 0 for value in row.likelihoods)
    facts = read_manifest(units_of(recipe, study)["mctaco-paper"].directory)["facts"]
    assert set(facts["scores"]) == {"paper", "paper_strict", "paper_f1"}
    facts = read_manifest(units_of(recipe, study)["mctaco-robust"].directory)["facts"]
    assert set(facts["scores"]) == {"pairs", "robust_f1", "robust"}


def test_restricted_questions_are_nowhere_on_disk(suite):
    recipe, study = suite
    for path in [*study.glob("questions/gpqa*"), *study.glob("eval/base/gpqa-*/*")]:
        content = path.read_bytes()
        text = zstandard.decompress(content) if path.suffix == ".zst" else content
        assert b"SECRET" not in text, path
        assert b"right of" not in text, path
    assert units_of(recipe, study)["gpqa-robust"].rows()[0].prompt is None
    benchmark = next(item for item in recipe.suite.benchmarks if item.name == "gpqa")
    loaded = load_questions(recipe, benchmark, study)
    assert loaded[0].fields["question"] == "SECRET question a?"  # read from its source again
    path = Path(benchmark.data.path)
    before = path.read_text()
    path.write_text(before.replace("wrong 1", "wrong 9"))
    try:
        with pytest.raises(UserError, match="gpqa is not what it was when this study fixed its questions"):
            load_questions(recipe, benchmark, study)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", RESPONSES)
def test_scores_of_known_responses(suite, name):
    """Each response in place of the model's, in every prompting; the mean by hand in both readings."""
    recipe, study = suite
    benchmark = next(item for item in recipe.suite.benchmarks if item.name == name)
    fixed = load_questions(recipe, benchmark, study)
    responses, expected = RESPONSES[name]
    letters = [question.reference for question in fixed]
    if name == "gpqa":
        responses = [response.format(*letters) for response in responses]
    for prompting in benchmark.promptings:
        if prompting in benchmark.likelihood:
            continue
        unit = units_of(recipe, study)[f"{name}-{prompting}"]
        original = unit.path(0).read_bytes()
        pairs = zip(unit.rows(), responses, strict=True)
        write_responses(unit.path(0), [replace(row, responses=(text,), tokens=(1,)) for row, text in pairs])
        generate.score_unit(recipe, study, unit)
        for scoring, mean in expected.items():
            wanted = scoring if scoring in benchmark.scorings else benchmark.cell(scoring)[1]
            scores, _ = read_cell(study, ["base"], benchmark, prompting, wanted)
            assert scores.means()[0] == pytest.approx(100 * mean), (prompting, scoring)
        unit.path(0).write_bytes(original)


def test_a_benchmark_of_ones_own_needs_a_recipe_and_a_task_file(smoke_study, tmp_path):
    """A group called law, asked and judged without a line of code."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "statutes.yaml").write_text('doc_to_text: "{{case}}\\nIs it lawful? Answer yes or no."\n')
    (tasks / "sum.yaml").write_text('doc_to_text: "{{problem}}"\n')
    rows = [{"facts": {"case": f"Case {n}."}, "ruling": "yes", "docket": n, "court": n // 2} for n in range(4)]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "kind": "file",
        "path": str(tmp_path / "law.jsonl"),
        "fields": {"case": "facts.case"},
        "reference_field": "ruling",
        "id_field": "docket",
        "cluster_field": "court",
    }
    listed = [
        {"name": "sum", "group": "math", "scorings": {"robust": "boxed"}},
        {"name": "statutes", "group": "law", "scorings": {"robust": "yes_no"}, "data": data},
    ]
    overrides = ["arms={}", "train=null", f"suite.tasks={tasks}", f"suite.benchmarks={json.dumps(listed)}"]
    recipe = load_recipe(SMOKE, overrides)
    study = tmp_path / "study"
    study.mkdir()
    (study / "base").symlink_to(smoke_study / "base")
    start_stage(study / "questions", "questions", {})
    questions.run(recipe, study, study / "questions", False)
    start_stage(study / "eval" / "base", "eval/base", {}, in_place=True)
    generate.run(recipe, study, study / "eval" / "base", False, "base")
    rows = units_of(recipe, study)["statutes-native"].rows()
    assert "Case 3.\nIs it lawful? Answer yes or no.<|im_end|>" in rows[3].prompt
    scores, _ = read_cell(study, ["base"], recipe.suite.benchmarks[1], "native", "robust")
    assert scores.clusters == 2
    law = recipe.suite.benchmarks[1]
    wrong = law.model_copy(update={"data": law.data.model_copy(update={"reference_field": "ruling2"})})
    with pytest.raises(UserError, match="has no column 'ruling2'"):
        read_source_questions(recipe, wrong, study)
