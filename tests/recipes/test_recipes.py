"""Recipes: every shipped one loads, mistakes are sentences, the schema can express every arm of the unified loss."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from launch.commands.main import main
from launch.pairs import audit_recipes
from launch.planning.preflight import check_before_running, mistakes, model_mistake, unresolved_sentences, warnings
from launch.stages import build_stages
from recipes.errors import UserError
from recipes.loading import apply_override, load_recipe, validate_recipe
from recipes.schema import Recipe
from tests.paths import POCKET, RECIPES, ROOT
from train.arms import resolve_arm

AUDITS = sorted(path.relative_to(ROOT) for path in (RECIPES / "audit").glob("*.yaml"))
ABLATIONS = sorted(path.relative_to(ROOT) for path in (RECIPES / "ablations").glob("*.yaml"))
SHIPPED = sorted({path.relative_to(ROOT) for path in RECIPES.rglob("*.yaml")} - {*AUDITS, *ABLATIONS})


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_recipe_loads_and_its_arms_can_run(path):
    recipe = load_recipe(ROOT / path)
    for arm in recipe.trained:
        resolve_arm(recipe, arm)
    header = [line for line in (ROOT / path).read_text().splitlines() if line.startswith("#")]
    launch = f"transfer run {path}" if recipe.model or recipe.corpus.sources else "transfer fetch"
    assert any(launch in line for line in header)  # every recipe says how to launch it
    if recipe.model and path.parts[1] != "corpora":  # a study is fetched by one command, with its corpus and suite
        assert {line.split()[3] for line in header if line.startswith("#   transfer fetch ")} <= {str(path)}


@pytest.mark.parametrize("path", AUDITS, ids=str)
def test_shipped_audit_is_one_study_for_each_base(path):
    studies = audit_recipes(ROOT / path, [])
    assert [len(recipe.arms) for recipe, _ in studies] == [len(pairs) for _, pairs in studies]
    assert len({recipe.model.path for recipe, _ in studies}) == len(studies)
    assert sum(len(pairs) for _, pairs in studies) == 18
    header = [line for line in (ROOT / path).read_text().splitlines() if line.startswith("#")]
    assert any(f"transfer audit {path}" in line for line in header)


def test_null_leaves_an_arm_out():
    recipe = load_recipe(POCKET, ["arms.on_policy_sft=null"])
    assert list(recipe.arms) == ["off_policy_sft", "grpo"]
    assert not any("on_policy" in stage.name for stage in build_stages(recipe))


def test_levels_may_be_numbers():
    sources = "corpus.sources=[{kind: file, name: x, path: /x.jsonl, level_field: l, levels: [3, 4]}]"
    recipe = load_recipe(POCKET, [sources, "corpus.teacher=null", "corpus.problem_set=all", "arms={}"])
    assert recipe.corpus.sources[0].levels == ("3", "4")


def test_every_field_has_a_docstring():
    def sections(model, seen):
        if model in seen:
            return
        seen.add(model)
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"
            for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
                if hasattr(inner, "model_fields"):
                    sections(inner, seen)

    seen: set = set()
    sections(Recipe, seen)
    assert len(seen) >= 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "`train.stepz` is not a setting; did you mean `train.steps`?"),
        ("arms.grpo.betta=0.1", "did you mean `arms.grpo.beta`?"),
        ("nonsense=1", "`nonsense` is not a setting; allowed are"),
        ("train.steps=-1", "`train.steps` is -1, but must be greater than or equal to 1"),
        ("train.learning_rate=fast", "`train.learning_rate` is 'fast', but must be a number"),
        ("train.steps=ten", "`train.steps` is 'ten', but must be an integer"),
        ("train.steps=1.5", "`train.steps` is 1.5, but must be an integer"),
        ("arms.grpo.negatives=maybe", "`arms.grpo.negatives` is 'maybe', but must be true or false"),
        ("title=3", "`title` is 3, but must be text"),
        ("train=3", "`train` is 3, but must be a section with keys"),
        ("arms.off_policy_sft.updates_per_batch=2", "`updates_per_batch` above 1 needs `sampling: current`"),
        ("arms.grpo.updates_per_batch=4", "steps 150 must be a multiple of updates_per_batch 4"),
        ("arms.grpo.updates_per_batch=2", "save_every_steps 25 must be a multiple of updates_per_batch 2"),
        ("arms.grpo.sampling=round", "`sampling: round` and `round_steps` belong together"),
        ("arms.off_policy_sft.reward=random", "SFT on a teacher trains on the correct samples"),
        ("arms.off_policy_sft.beta=0.1", "SFT on a teacher has no KL term"),
        ("arms.grpo.start_from=grpo", "arm 'grpo' starts from itself"),
        ("arms.grpo.start_from=nobody", "starts from 'nobody', which is not an arm this study trains; it trains off_"),
        ("arms.off_policy_sft.negatives=true", "needs `credit: advantage`"),
        ("seeds=[1,1]", "a seed is listed twice"),
        ("corpus.teacher=null", "samples from the teacher but `corpus.teacher` is missing"),
        ("suite.benchmarks.0.group=law", None),
        ("study=Bad Name", "`study` is 'Bad Name'"),
        ("seeds=[-1]", "`seeds.0` is -1"),
        ("seeds=[]", "`seeds` is empty"),
        ("seeds=0", "`seeds` is 0, but must be a list"),
        ("statistics.seed=-1", "`statistics.seed` is -1"),
        ("model=null", "a study with arms needs `model`"),
        ("train=null", "a study that trains arms needs `train`"),
        ("corpus.sources=[]", "a study that trains arms needs `corpus.sources`"),
        ("suite.benchmarks.0.name=a/b", "`suite.benchmarks.0.name` is 'a/b'"),
        ("suite.benchmarks.0.scorings.robust=plain", "is scored 'plain' but `corpus.answer_form` is 'boxed'"),
        ("suite.benchmarks.0.scorings.robust=best", "`suite.benchmarks.0.scorings.robust` is 'best'"),
        (
            "suite.benchmarks.0.scorings={robust: likelihood}",
            "no scoring of 'sum' can judge the responses to its prompting 'native'; add one",
        ),
        (
            "suite.benchmarks.0={name: sum, group: math, promptings: [lik, native], likelihood: [lik], "
            "scorings: {robust: boxed}}",
            "no scoring of 'sum' can judge the likelihoods to its prompting 'lik'; add one",
        ),
        (
            "suite.benchmarks.0={name: sum, group: math, promptings: [paper, robust], likelihood: [paper], "
            "scorings: {lik: likelihood, robust: boxed}}",
            "reading 'paper' of 'sum' would judge 'paper' by 'robust', which cannot read it",
        ),
        ("suite.benchmarks.0.scorings.loose=code", "scoring 'loose' of 'sum' is 'code', which judges rows of the form"),
        (
            "analysis.claims=[{group: math, first: ppo}]",
            "analysis.claims names 'ppo', which is neither base nor an arm",
        ),
        ("trajectory=null suite.engine={kind: endpoint}", "`kind: endpoint` needs `base_url`"),
        ("arms.grpo.start_from=x", "arm 'grpo' starts from 'x', which is not an arm this study trains"),
        (
            "drift=null trajectory=null suite.benchmarks.0.name=heldout corpus.heldout_problems=0",
            "needs `corpus.heldout_problems` above 0",
        ),
        ("drift=null corpus.heldout_problems=0", "locates equal gain on `corpus.heldout_problems`, which is 0"),
        ("suite.engine={kind: endpoint, base_url: 'http://h/v1', model: m}", "must be hf or vllm, not endpoint"),
        ("corpus.sources=[{kind: file, name: x, path: /x.jsonl}]", "the scripted teacher cannot solve source 'x'"),
        ("train.temperature=0.7", "train.temperature is 0.7 but must be 1"),
        ("corpus.teacher={kind: transformers}", "a sampler of kind `transformers` needs `model`"),
        ("corpus.teacher={kind: endpoint, model: m, base_url: 'http://h:port/v1'}", "is not an address such as"),
        ("corpus.pass_rate={sampler: {kind: scripted}}", "does not measure the base; use `transformers`"),
        (
            "corpus.pass_rate={low: 0.9, high: 0.1, sampler: {kind: transformers, model: base}}",
            "`low` 0.9 is above `high` 0.1",
        ),
        (
            "corpus.decontamination.benchmarks=[{kind: pocket, name: b}]",
            "`corpus.decontamination.benchmarks.0.kind` is 'pocket'",
        ),
        ("train", "must have the form key=value"),
        ("suite.benchmarks.99.group=law", "is not a key of the recipe"),
    ],
)
def test_mistakes_are_one_sentence(override, message):
    if message is None:
        load_recipe(POCKET, [override])
        return
    with pytest.raises(UserError) as caught:
        build_stages(load_recipe(POCKET, re.split(r" (?=corpus|suite|trajectory)", override)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_override_reaches_lists_and_new_keys():
    values = {"a": {"b": [{"c": 1}]}}
    apply_override(values, "a.b.0.c=[1, 2]")
    apply_override(values, "a.x.y=1e-6")
    assert values == {"a": {"b": [{"c": [1, 2]}], "x": {"y": "1e-6"}}}
    assert load_recipe(POCKET, ["train.learning_rate=1e-6"]).train.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("key", "dotted"),
    [
        ("suite.benchmarks[0].group", "suite.benchmarks.0.group"),
        ("arms['grpo'][\"beta\"]", "arms.grpo.beta"),
        ("a[0][1]", "a.0.1"),
    ],
)
def test_a_key_with_brackets_is_refused_with_its_form(key, dotted):
    values = {"a": [[1, 2]]}
    with pytest.raises(UserError) as caught:
        apply_override(values, f"{key}=3")
    assert str(caught.value) == (
        f"override {f'{key}=3'!r}: the steps of a key are joined by dots; did you mean `{dotted}`?"
    )
    assert values == {"a": [[1, 2]]}
    apply_override(values, "a.0.1=[3]")
    assert values == {"a": [[1, [3]]]}


@pytest.mark.parametrize("text", [" Box it.", "Box it. ", "\nBox it's é."])
def test_blanks_around_a_text_are_not_dropped_silently(text):
    values = {}
    with pytest.raises(UserError) as caught:
        apply_override(values, f"prompt.suffix={text}")
    assert values == {}
    said = r"override .*: YAML drops blanks around a text; write (.*) to keep them, or (.*)"
    forms = re.fullmatch(said, str(caught.value))
    assert forms is not None
    for form, kept in zip(forms.groups(), (text, text.strip()), strict=True):
        (word,) = shlex.split(form)  # as a shell reads it
        apply_override(values, word)
        assert values == {"prompt": {"suffix": kept}}
    for same, value in (("x= 3", 3), ("x= [a, b] ", ["a", "b"]), ("x=' a'", " a"), ("x= true", True), ("x= ", None)):
        apply_override(values, same)
        assert values["x"] == value


def test_resolved_recipe_round_trips():
    recipe = load_recipe(POCKET)
    assert validate_recipe(recipe.dump(), "again").dump() == recipe.dump()


ALL_METHODS = {
    "off_policy_sft": {"sampling": "teacher"},
    "self_distillation": {"sampling": "base_once"},
    "iterated_sft": {"sampling": "round", "round_steps": 25},
    "on_policy_sft": {"sampling": "current"},
    "off_policy_rl": {"sampling": "teacher", "credit": "advantage", "negatives": True},
    "grpo": {"sampling": "current", "credit": "advantage", "negatives": True},
    "grpo_kl": {"sampling": "current", "credit": "advantage", "negatives": True, "beta": 0.04},
    "grpo_positive": {"sampling": "current", "credit": "advantage", "negatives": False},
    "random_reward": {"sampling": "current", "credit": "advantage", "negatives": True, "reward": "random"},
    "format_reward": {"sampling": "current", "credit": "advantage", "negatives": True, "reward": "format"},
    "sft_then_grpo": {
        "sampling": "current", "credit": "advantage", "negatives": True, "start_from": "off_policy_sft",
    },
    "stale_grpo": {"sampling": "current", "credit": "advantage", "negatives": True, "updates_per_batch": 5},
    "released": {"external": "/models/released"},
}  # fmt: skip


def test_schema_expresses_every_arm():
    values = yaml.safe_load(POCKET.read_text()) | {"arms": ALL_METHODS}
    recipe = validate_recipe(values, "all methods")
    assert list(recipe.external) == ["released"]
    for name in recipe.trained:
        resolve_arm(recipe, name)
    with pytest.raises(UserError, match="'released' is not an arm that pocket trains"):
        resolve_arm(recipe, "released")
    assert recipe.labels("grpo") == ["grpo-seed0-final"]
    assert recipe.labels("released") == ["released"]


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [1\n", "\x00"])
def test_unusable_recipe_file(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(path)
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stdy.yaml", "recipe {folder}/stdy.yaml does not exist; did you mean {folder}/study.yaml?"),
        ("nosuch.yaml", "recipe {folder}/nosuch.yaml does not exist; recipes are under recipes/"),
        ("nope", "{folder}/nope does not exist; studies in {folder} are rates, and recipes are under recipes/"),
        ("none/nope", "{folder}/none/nope does not exist; there is no study in {folder}/none, and recipes are under "
         "recipes/"),
        ("xyz.json", "recipe {folder}/xyz.json does not exist; recipes are under recipes/"),
        ("", "{folder} is not a study directory: it has no study.json; did you mean the recipe {folder}/study.yaml?"),
        ("rates", "{folder}/rates is not a study directory: it has no study.json; it is an ablation: see `transfer "
         "ablate {folder}/rates`, or name a point, {folder}/rates/points/x"),
        ("none", "{folder}/none is not a study directory: it has no study.json; `transfer run` makes one"),
        ("grid.yaml", "{folder}/grid.yaml is the file of an ablation, not a recipe; see `transfer ablate "
         "{folder}/grid.yaml --dry-run`"),
        ("audit.yaml", "{folder}/audit.yaml is an audit file, not a recipe; see `transfer audit {folder}/audit.yaml "
         "--dry-run`"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_says_what_to_name(name, message, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "ablation.json").write_text("{}")
    (tmp_path / "rates" / "points" / "x").mkdir(parents=True)
    (tmp_path / "rates" / "points" / "x" / "study.json").write_text("{}")
    (tmp_path / "study.yaml").write_text("study: mine\n")
    if name in ("grid.yaml", "audit.yaml"):
        (tmp_path / "grid.yaml").write_text("recipe: study.yaml\ngrid: {train.steps: [1, 2]}\n")
        (tmp_path / "audit.yaml").write_text("pairs: []\n")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / name)
    assert str(error.value) == message.format(folder=tmp_path)


def test_a_misspelt_shipped_recipe_gets_a_suggestion():
    with pytest.raises(UserError, match=r"did you mean recipes/pocket/study.yaml\?"):
        load_recipe(Path("recipes/pocket/studi.yaml"))


def test_override_reaches_into_a_section_that_is_switched_off():
    values = {"model": None}
    apply_override(values, "model.path=/x")
    assert values == {"model": {"path": "/x"}}


def test_an_update_of_more_problems_than_there_are_is_named():
    assert mistakes(load_recipe(POCKET, ["train.problems_per_step=16", "corpus.train_problems=16"])) == []
    (text,) = mistakes(load_recipe(POCKET, ["train.problems_per_step=16", "corpus.train_problems=15"]))
    assert text == (
        "a step presents train.problems_per_step=16 problems but the set 'teacher_solvable' has only 15; lower it, or "
        "build a larger corpus"
    )


def test_a_warm_up_that_does_not_end_is_named():
    assert warnings(load_recipe(POCKET, ["train.steps=6"])) == []
    assert warnings(load_recipe(POCKET, ["train.steps=5", "arms.grpo.train={warmup_steps: 4}"])) == [
        "off_policy_sft, on_policy_sft: the learning rate never reaches its full value, because train.warmup_steps is "
        "5 and train.steps is 5"
    ]
    (text,) = warnings(load_recipe(POCKET, ["suite.benchmarks=[{name: sum, group: math, scorings: {robust: exact}}]"]))
    assert text.startswith("every benchmark is in the trained group math, so the report cannot show what was forgotten")


def test_a_path_that_does_not_exist_is_not_to_be_fetched():
    absent = load_recipe(POCKET, ["model={path: ./absent}"])
    assert unresolved_sentences(absent) == []
    with pytest.raises(UserError) as error:
        check_before_running(absent)
    assert str(error.value).startswith("model.path ./absent is neither a directory nor a Hugging Face id")
    assert len(unresolved_sentences(load_recipe(POCKET, ["model={path: Qwen/Qwen3-1.7B-Base}"]))) == 1


def test_a_folder_without_weights_is_refused_before_anything_starts(tmp_path):
    """The final weights are meant, not those of a snapshot."""
    run = tmp_path / "arms" / "grpo" / "seed-0"
    for part in ("final", "snapshots/step-2"):
        (run / part).mkdir(parents=True)
        (run / part / "model.safetensors").touch()
    meant = f"has no safetensors weights; did you mean {run / 'final'}?"
    assert model_mistake(str(run / "final")) is None
    assert model_mistake(str(run)) == meant
    assert model_mistake(str(run.parent)) == meant
    assert model_mistake(str(run / "snapshots")) == meant.replace("final", "snapshots/step-2")
    (tmp_path / "empty").mkdir()
    assert "no safetensors weights; name a folder that has them, or convert" in str(model_mistake(f"{tmp_path}/empty"))
    assert model_mistake("Qwen/Qwen3-14B-Base") is None
    teacher = f"corpus.teacher={{kind: transformers, model: {run}}}"
    for override, key in (
        (f"model={{path: {run}}}", "model.path"),
        (f"arms.x={{external: {run}}}", "arms.x.external"),
        (teacher, "corpus.teacher.model"),
    ):
        assert f"{key} {run} {meant}" in mistakes(load_recipe(POCKET, [override]))


def test_one_arm_has_nothing_to_match(capsys):
    assert main(["check", str(POCKET), "arms.grpo=null", "arms.on_policy_sft=null"]) == 0
    assert capsys.readouterr().out == "pocket trains one arm, off_policy_sft, so there is nothing to match\n"


def test_benchmarks_the_corpus_is_not_compared_with_are_named(tmp_path):
    assert warnings(load_recipe(POCKET)) == []
    law = ["suite.benchmarks.0.name=law_exam", "suite.benchmarks.1.name=law_essay"]
    (text,) = warnings(load_recipe(POCKET, law))
    assert "not compared with the questions of law_essay, law_exam" in text
    bench = "corpus.decontamination.benchmarks=[{kind: file, name: law_exam, path: x}]"
    (text,) = warnings(load_recipe(POCKET, [*law, bench]))
    assert "the questions of law_essay;" in text
    # A file is compared under any name, and named once where several benchmarks ask its questions.
    own = [f"suite.benchmarks.{n}.data={{kind: file, path: {path}}}" for n, path in ((0, "x"), (1, "y"), (2, "y"))]
    two = [*law, "suite.benchmarks.2.name=law_mc", *own]
    (text,) = warnings(load_recipe(POCKET, two))
    assert "the questions of law_essay, law_exam;" in text
    bench = "corpus.decontamination.benchmarks=[{kind: file, name: law, path: ./x}]"
    (text,) = warnings(load_recipe(POCKET, [*two, bench]))
    assert "the questions of law_essay;" in text
    bench = "corpus.decontamination.benchmarks=[{kind: file, name: law, path: ./x}, {kind: file, name: y, path: y}]"
    assert warnings(load_recipe(POCKET, [*two, bench])) == []


@pytest.mark.parametrize("section", ["model", "train", "suite"])
def test_a_required_section_is_returned_or_its_absence_explained(section: str) -> None:
    empty = Recipe(study="empty")
    with pytest.raises(UserError, match=f"recipe 'empty' has no `{section}`"):
        getattr(empty, f"require_{section}")()
    full = load_recipe("recipes/pocket/smoke.yaml")
    assert getattr(full, f"require_{section}")() is getattr(full, section)


@pytest.mark.parametrize("name", ["Über", "My study", "-x", "a/b"])
def test_a_name_that_cannot_be_a_folder_gets_a_sentence(name):
    with pytest.raises(UserError) as error:
        load_recipe(POCKET, [f"study={name}"])
    assert str(error.value) == (
        f"{POCKET}: `study` is {name!r}, but it may have the letters a to z, digits, and . _ - behind a first letter "
        "or digit, such as my-study"
    )
    with pytest.raises(UserError, match=r"`suite.benchmarks.0.name` is 'a b', but it may have letters from A to Z and"):
        load_recipe(POCKET, ["suite.benchmarks.0.name=a b"])


def test_a_base_that_another_study_makes_is_said_with_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absent = "runs/smollm2-135m-warm-start/arms/warm_start/seed-0/final"
    (text,) = mistakes(load_recipe(POCKET, [f"model={{path: {absent}}}", "corpus.sources=[]", "arms={}", "drift=null",
                                           "trajectory=null"]))  # fmt: skip
    assert text == (f"model.path {absent} does not exist; `transfer run recipes/smollm2-135m/warm_start.yaml` makes it")
    other = ["corpus.sources=[]", "arms={}", "drift=null", "trajectory=null", "model={path: runs/mine/base/x}"]
    assert mistakes(load_recipe(POCKET, other)) == [
        "model.path runs/mine/base/x does not exist; the study mine makes it"
    ]
    (tmp_path / "first.yaml").write_text("study: mine  # the base\n")
    assert mistakes(load_recipe(POCKET, other)) == [
        "model.path runs/mine/base/x does not exist; `transfer run first.yaml` makes it"
    ]


def test_the_earlier_name_of_drift_is_read():
    values = load_recipe(POCKET).dump()
    values["probe"] = values.pop("drift")
    assert validate_recipe(values, "earlier").dump() == load_recipe(POCKET).dump()
    with pytest.raises(UserError, match="`probe` is not a setting"):
        load_recipe(POCKET, ["probe.problems=4"])
