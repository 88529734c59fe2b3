"""The command line: suggestions, version, completion, RECIPE or RUN, and paths of a recipe from any folder."""

import argparse
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from eval.questions.task_files import TASKS_DIR, task_folder, task_hashes, task_path
from launch.commands.arguments import input_file, read_study, study_folder
from launch.commands.main import COMMANDS, main
from recipes.errors import UserError
from recipes.files import hash_file, write_json
from recipes.loading import load_recipe
from tests.paths import RECIPES, ROOT, SMOKE


def ended(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    long = "x" * 300
    for folder, reason in ((tmp_path / "file" / "a", "Not a directory"), (tmp_path / "file", "File exists"),
                           (tmp_path / long, "File name too long")):  # fmt: skip
        assert main(["init", "study", str(folder / "study.yaml")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"transfer: {tmp_path}") and f"cannot be read or written: {reason}\n" in error, error


def test_a_mistyped_command_gets_a_suggestion(capsys):
    code, _, error = ended(["rnu"], capsys)
    assert code == 2
    assert "'rnu' is not a command; did you mean `transfer run`?" in error
    assert "there are init, validate, run, plan," in ended(["xyzzy"], capsys)[2]


def test_a_mistyped_option_gets_a_suggestion(capsys):
    assert "unknown option --dryrun; did you mean --dry-run?" in ended(["run", str(SMOKE), "--dryrun"], capsys)[2]
    assert "unknown option --maxdrop=3; did you mean --max-drop?" in ended(["pick", "x", "--maxdrop=3"], capsys)[2]
    assert "unknown option --quick; see transfer run --help" in ended(["run", str(SMOKE), "--quick"], capsys)[2]


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (["diff", "a", "b"], "two studies"),
        (["lineage", "a"], "one study"),
        (["config", "train"], "KEY"),
        (["logs", "a", "base"], "RECIPE|RUN and STAGE"),
        (["completion", "bash"], "shell"),
        (["doctor"], "only options"),
    ],
)
def test_a_word_too_many(words, taken, capsys):
    code, _, error = ended([*words, "extra"], capsys)
    assert (code, error.splitlines()[-1]) == (2, f"transfer: error: {words[0]} takes {taken}, not also 'extra'")


def test_help_is_also_a_command(capsys):
    assert ended(["help"], capsys) == ended(["--help"], capsys)
    assert ended(["help", "plan"], capsys) == ended(["plan", "--help"], capsys)


@pytest.mark.parametrize(
    ("words", "missing"),
    [(["plan"], "RECIPE|RUN"), (["score"], "RECIPE|RUN"), (["init"], "study|corpus|benchmark")],
)
def test_only_what_is_required_is_called_so(words, missing, capsys):
    code, _, error = ended(words, capsys)
    assert code == 2
    assert error.endswith(f"the following arguments are required: {missing}\n")


def test_the_version_is_that_of_the_installed_package(capsys):
    assert ended(["--version"], capsys) == (0, f"transfer-lab {metadata.version('transfer-lab')}\n", "")


def test_an_interrupted_command_says_that_it_can_be_repeated(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.loading.load_recipe", interrupted)
    assert main(["plan", str(SMOKE)]) == 130
    assert "finished work is kept, the same command continues" in capsys.readouterr().err


def test_every_command_describes_itself_and_starts_without_the_libraries():
    assert all(command.summary and command.description.endswith(".") for command in COMMANDS)
    script = "import sys; from launch.commands.main import build_parser; build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "pydantic", "yaml", "jinja2"} & set(loaded.split())


def test_bash_completes_commands_and_options(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    complete = "COMP_WORDS=({words}); COMP_CWORD={index}; _transfer; echo ${{COMPREPLY[*]}}"
    lines = [
        complete.format(words="transfer ga", index=1),
        complete.format(words="transfer gate --ma", index=2),
        complete.format(words="transfer gate rec", index=2),
    ]
    result = subprocess.run(
        ["bash", "-c", "\n".join([f". {tmp_path / 'script'}", *lines])], capture_output=True, text=True, check=True
    )
    assert result.stdout == "gate\n--max-drop\n\n"  # files are left to bash
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out


def test_a_recipe_and_a_run_name_the_same_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_recipe = argparse.Namespace(study=SMOKE, overrides=["train.steps=3"])
    recipe, folder = read_study(by_recipe)
    assert (recipe.study, recipe.train.steps, folder) == ("smoke", 3, Path("runs/smoke"))
    with pytest.raises(UserError, match=r"runs/smoke does not exist; `transfer run .*smoke.yaml` makes it"):
        study_folder(by_recipe.study)
    write_json(folder / "study.json", recipe.dump())
    by_run = argparse.Namespace(study=folder, overrides=["train.save_every_steps=2"])
    again, same = read_study(by_run)
    assert same == folder == study_folder(by_recipe.study) == study_folder(by_run.study)
    assert (again.train.steps, again.train.save_every_steps) == (3, 2)
    assert load_recipe(folder).dump() == recipe.dump()
    ablation = RECIPES / "ablations" / "pocket_learning_rate.yaml"
    with pytest.raises(
        UserError, match=r"runs/ablations/pocket-learning-rate does not .*`transfer ablate .*` makes it"
    ):
        study_folder(ablation)
    (tmp_path / "runs" / "ablations" / "pocket-learning-rate").mkdir(parents=True)
    assert study_folder(ablation) == Path("runs/ablations/pocket-learning-rate")


def test_a_dry_run_is_the_plan_with_a_command_for_stages_that_run_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {}
    for arguments in (["plan"], ["run", "--dry-run"], ["run", "--dry-run", "--stages"]):
        assert main([*arguments, str(SMOKE)]) == 0
        texts[" ".join(arguments)] = capsys.readouterr().out
    table, rest = texts["plan"].split("\n\nin all", 1)
    dry = texts["run --dry-run"]
    assert dry.startswith(table)
    assert dry.endswith(rest)
    run = f"transfer run {SMOKE} --until"
    assert [line.strip() for line in dry.removeprefix(table).removesuffix(rest).splitlines() if run in line] == [
        f"{run} {stage}"
        for stage in ("base", "corpus", "arms/off_policy_sft/seed-0", "arms/on_policy_sft/seed-0", "questions",
                      "eval/base", "report")
    ]  # fmt: skip
    assert "arms/on_policy_sft, arms/grpo: one process, train.grpo" in dry
    assert texts["run --dry-run --stages"].count(run) == 11
    assert '"study"' not in texts["run --dry-run --stages"]
    assert main(["run", str(SMOKE), "--stages"]) == 2
    assert "--stages shows more of a --dry-run" in capsys.readouterr().err


def test_shipped_recipes_are_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert input_file("recipes/pocket/smoke.yaml") == SMOKE
    (tmp_path / "recipes" / "pocket").mkdir(parents=True)
    (tmp_path / "recipes" / "pocket" / "smoke.yaml").touch()
    assert input_file("recipes/pocket/smoke.yaml") == Path("recipes/pocket/smoke.yaml")
    assert input_file("mine.yaml") == Path("mine.yaml")


@pytest.fixture
def own_study(tmp_path):
    """A recipe with local files beside it: rows of its corpus and a task file of its own."""
    values = yaml.safe_load((RECIPES / "corpora" / "gsm8k_train_file.yaml").read_text())
    suite = {"tasks": "./tasks", "benchmarks": [
        {"name": "mine", "group": "math", "scorings": {"paper": "plain"},
         "data": {"kind": "file", "path": "bench.jsonl", "fields": {"problem": "problem"}}},
        {"name": "ifeval", "group": "other", "scorings": {"paper": "instructions_strict"},
         "data": {"kind": "hub", "dataset": "google/IFEval", "files": ["x.jsonl"], "form": "ifeval"}},
    ]}  # fmt: skip
    folder = tmp_path / "project"
    (folder / "tasks").mkdir(parents=True)
    for name in ("gsm8k_train.jsonl", "bench.jsonl"):
        (folder / name).touch()
    shutil.copy(TASKS_DIR / "pocket" / "sum.yaml", folder / "tasks" / "mine.yaml")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values | {"suite": suite}))
    return folder


def test_paths_of_a_recipe_are_relative_to_its_file_and_overrides_to_the_working_directory(own_study, monkeypatch):
    elsewhere = own_study.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.jsonl").touch()
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(own_study / "recipe.yaml", ["suite.benchmarks.0.data.path=other.jsonl"])
    assert recipe.corpus.sources[0].path == str(own_study / "gsm8k_train.jsonl")
    assert recipe.suite.tasks == str(own_study / "tasks")
    assert recipe.suite.benchmarks[0].data.path == str(elsewhere / "other.jsonl")
    assert load_recipe(own_study / "recipe.yaml", ["corpus.sources.0.path=absent"]).corpus.sources[0].path == "absent"


def test_task_files_of_a_user_add_to_the_shipped_ones(own_study):
    suite = load_recipe(own_study / "recipe.yaml").suite
    folder = task_folder(suite)
    assert folder == own_study / "tasks"
    shipped = TASKS_DIR / "twelve" / "ifeval.yaml"
    assert task_path(folder, "ifeval", "native") == shipped
    assert task_hashes(suite) == {"mine.yaml": hash_file(folder / "mine.yaml"), "ifeval.yaml": hash_file(shipped)}
    (folder / "ifeval.yaml").write_text("task: ifeval\n")
    assert task_path(folder, "ifeval", "native") == folder / "ifeval.yaml"
    assert task_path(TASKS_DIR / "smollm2", "ifeval", "native") == shipped
    assert task_path(TASKS_DIR / "pocket", "absent", "native") == TASKS_DIR / "pocket" / "absent.yaml"


def test_a_lock_file_is_not_rewritten_by_an_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").touch()
    shutil.copy(RECIPES / "corpora" / "gsm8k_train_file.yaml", tmp_path / "recipe.yaml")
    entry = {"path": "x.jsonl", "revision": None, "files": {"x.jsonl": "00"}}
    (tmp_path / "recipe.lock.json").write_text(json.dumps({"sources": {"gsm8k-train": entry}}))
    assert load_recipe(tmp_path / "recipe.yaml", ["seeds=[1]"]).lock["sources"]["gsm8k-train"] == entry


def test_fetch_names_only_a_lock_that_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "benchmark", "bench.yaml"]) == 0
    (tmp_path / "none.yaml").write_text("study: none\n")
    lock = tmp_path / "bench.lock.json"

    def last_line(status, *words):
        capsys.readouterr()
        assert main(["fetch", *words]) == status
        return capsys.readouterr().out.splitlines()[-1]

    assert last_line(0, "none.yaml") == "no lock was written"
    assert last_line(2, "bench.yaml", "suite.benchmarks.0.data.path=gone.jsonl") == "no lock was written"
    assert not list(tmp_path.glob("*.lock.json"))
    assert last_line(0, "bench.yaml") == "lock: bench.lock.json"
    before = lock.read_bytes()
    assert json.loads(before)["benchmarks"]["my_benchmark"]["rows"] == 2
    gone = last_line(2, "bench.yaml", "suite.benchmarks.0.data.path=gone.jsonl")
    assert (gone, lock.read_bytes()) == ("lock: bench.lock.json, unchanged", before)


def test_running_benchmarks_alone_is_refused_with_the_command_that_asks_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "benchmark", "own/bench.yaml"]) == 0
    capsys.readouterr()
    assert main(["run", "own/bench.yaml"]) == 2
    assert capsys.readouterr().err == (
        "transfer: own-benchmark has nothing to run, neither a model nor a corpus; benchmarks alone are asked of any "
        "model with `transfer eval --suite RECIPE`\n"
    )


def test_an_override_that_no_arm_reads_is_refused(capsys):
    study = str(RECIPES / "pocket" / "study.yaml")
    for command in ("plan", "check", "run"):
        assert main([command, study, "train.learning_rate=1e-4", *(["--dry-run"] if command == "run" else [])]) == 2
        assert capsys.readouterr().err == (
            "transfer: train.learning_rate changes nothing, because every arm has its own value; set "
            "arms.off_policy_sft.learning_rate, arms.on_policy_sft.learning_rate, arms.grpo.learning_rate\n"
        )
    assert main(["check", study, "train.warmup_steps=5"]) == 0  # that of the study counts
