"""All mistakes of a recipe come in one message, and none that only follows from another."""

import pytest

from launch.site_file import load_site
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.schema import Recipe
from recipes.spec import misfits
from tests.paths import RECIPES

RECIPE = """
study: s
model: {pocket: {}}
train: {steps: 4, problems_per_step: 2, learning_rate: 1.0e-3}
corpus: {sources: [{kind: pocket, name: world}], teacher: {kind: scripted}}
arms:
  sft: {sampling: teacher}
  grpo: {sampling: current, credit: advantage, negatives: true}
suite: {benchmarks: [{name: sum, group: math, scorings: {robust: boxed}}]}
"""


def mistakes_of(tmp_path, *overrides):
    path = tmp_path / "s.yaml"
    path.write_text(RECIPE)
    load_recipe(path)
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).split("\n")]


def test_wrong_keys_values_names_and_groups_come_at_once(tmp_path):
    assert mistakes_of(
        tmp_path, "train.stepps=3", "arms.grpo.credit=choise", "arms.sft.start_from=sftt", "analysis.trained_group=lab"
    ) == [
        "`train.stepps` is not a setting; did you mean `train.steps`?",
        "`arms.grpo.credit` is 'choise'; allowed are uniform, advantage",
        "arm 'sft' starts from 'sftt', which is not an arm this study trains; did you mean sft?",
        "no benchmark is in the group `lab`, which the transfer index divides by; set `analysis.trained_group` to one "
        "of math",
    ]


def test_every_check_of_a_section_comes(tmp_path):
    assert mistakes_of(tmp_path, "seeds=[1,1]", "resources={ranks: 3, nodes: 2, offload: true}", "arms.sft.beta=1") == [
        "arms.sft: `beta` above 0 needs samples or `credit: advantage`; SFT on a teacher has no KL term",
        "resources: `offload: true` needs `zero_stage` 2 or 3",
        "resources: resources.nodes 2 does not divide resources.ranks 3",
        "a seed is listed twice",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps=ten", "`train.steps` is 'ten', but must be an integer"),  # not: decay_steps are more than those
        ("train=5", "`train` is 5, but must be a section with keys"),  # not: training needs `train`
        ("arms.sft=5", "`arms.sft` is 5, but must be a section with keys"),  # not: grpo starts from no arm
        (
            "arms.sft={samplin: teacher}",  # not: an arm needs `sampling`
            "`arms.sft.samplin` is not a setting; did you mean `arms.sft.sampling`?",
        ),
        (
            "suite.benchmarks.0.group=a b",  # not: no benchmark is in the group math
            "`suite.benchmarks.0.group` is 'a b', but it may have letters from A to Z and a to z, digits, and . _ - "
            "behind a first letter or digit",
        ),
        ("suite.benchmarks=[]", "`suite.benchmarks` is [], but tuple should have at least 1 item"),
    ],
)
def test_nothing_is_said_that_rests_on_a_wrong_value(tmp_path, override, sentence):
    further = ["train.warmup_steps=3", "train.decay_steps=2", "train.schedule=warmup_stable_decay"]
    further = further if override.startswith("train.") else ["arms.grpo.start_from=sft"]
    first, *others = mistakes_of(tmp_path, *further, override)
    assert first.startswith(sentence)
    assert others == []


@pytest.mark.parametrize("name", ["pocket/study.yaml", "qwen3-8b/ablation.yaml"])
def test_one_wrong_value_or_key_anywhere_in_a_recipe_is_one_mistake(name):
    """What `misfits` adds to the errors of single values of a valid recipe could only rest on the wrong one."""
    values = {key: value for key, value in load_recipe(RECIPES / name).dump().items() if key != "lock"}
    assert misfits(values, Recipe) == []
    tried = 0
    for *before, last in places(values):
        if "alternatives" in before:  # a section's other locations are checked with it
            continue
        parent = values
        for step in before:
            parent = parent[step]
        kept, wrong = parent[last], 5 if isinstance(parent[last], dict) else {"?": 5}
        if last not in ("external", "stored", "pocket"):  # which count by being there
            parent[last] = wrong
            assert misfits(values, Recipe) == [], [*before, last]
        if isinstance(parent, dict) and before != ["arms"]:  # whose keys are names
            del parent[last]
            parent[f"{last}x"] = kept
            assert misfits(values, Recipe) == [], [*before, f"{last}x"]
            del parent[f"{last}x"]
        parent[last] = kept
        tried += 1
    assert tried > 200


def places(values, *before):
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in list(items) for place in ([*before, key], *places(value, *before, key))]


def test_every_other_location_of_a_source_is_checked(tmp_path):
    source = (
        "{kind: hub, name: x, dataset: a/b, files: [f], alternatives: [{filse: [g]}, {licence: MIT}, {revision: v1}]}"
    )
    assert mistakes_of(tmp_path, f"corpus.sources=[{source}]", "corpus.teacher=null", "arms.sft=null") == [
        "corpus.sources.0: `alternatives.0.filse`: Extra inputs are not permitted",
        "corpus.sources.0: alternatives.1 is the same location: set its `dataset`, `files` or `revision`",
        "`problem_set: teacher_solvable` needs `corpus.teacher`; say `problem_set: all`",
    ]


def test_what_a_wrong_key_may_have_meant_counts_as_given(tmp_path):
    assert mistakes_of(tmp_path, "corpus={sorces: []}") == [
        "`corpus.sorces` is not a setting; did you mean `corpus.sources`?",  # and not that there are no sources
        "arm 'sft' samples from the teacher but `corpus.teacher` is missing",
    ]


def test_a_wrong_arm_does_not_hide_another(tmp_path):
    assert mistakes_of(tmp_path, "arms.sft.start_from=5", "arms.grpo.start_from=none_such") == [
        "`arms.sft.start_from` is 5, but must be text; write 'arms.sft.start_from=\"5\"', which YAML reads as text",
        "arm 'grpo' starts from 'none_such', which is not an arm this study trains; it trains sft, grpo",
    ]


def test_only_arms_in_a_circle_start_from_themselves(tmp_path):
    third = "arms.third={sampling: current, start_from: sft}"
    assert mistakes_of(tmp_path, "arms.sft.start_from=grpo", "arms.grpo.start_from=sft", third) == [
        "arm 'sft' starts from itself, by `start_from` of 'grpo'",
        "arm 'grpo' starts from itself, by `start_from` of 'sft'",
    ]


def test_all_mistakes_of_a_site_file(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text('time_limit: 24:00:00\nsetup: ["a\\nb"]\nenvironment: {WANDB_API_KEY: x}\ngpu: h200\n')
    with pytest.raises(UserError) as caught:
        load_site(path)
    assert [line.removeprefix(f"{path}: ") for line in str(caught.value).split("\n")] == [
        "time_limit: 86400 is how YAML reads an unquoted time; write it in quotes, such as '24:00:00'",
        "setup: 'a\\nb' is more than one line; list the lines one by one",
        "environment: WANDB_API_KEY looks like a secret, and scripts are kept with the study; export it before "
        "`transfer run`, Slurm passes it on",
        "`gpu` is not a setting; did you mean `gpu_request` or `container.gpu`?",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.path=DIR", "model: `path` and `pocket` are both given; set model.pocket=null or model.path=null"),
        (
            "model.pocket=null",
            "model: neither `path` nor `pocket` is given; set model.path to a model, or model.pocket={} for the "
            "toy base",
        ),
        (
            "prompt.suffix=Answer:",
            "`prompt.suffix` is {'Answer': None}, but must be text; write 'prompt.suffix=\"Answer:\"', which YAML "
            "reads as text",
        ),
        ("title={}", "`title` is {}, but must be text"),
        ("title=", "`title` is None, but must be text; write 'title=\"\"', which YAML reads as text"),
        ("title=12", "`title` is 12, but must be text; write 'title=\"12\"', which YAML reads as text"),
        (
            "train.importance_sampling=off",
            "`train.importance_sampling` is False, but must be 'token_truncate', 'token_mask', 'sequence_truncate', "
            "'sequence_mask' or 'off'; write 'train.importance_sampling=\"off\"', which YAML reads as text",
        ),
        (
            "learning_rate=1e-4",
            "`learning_rate` is not a setting; did you mean `train.learning_rate`, `model.pocket.learning_rate` or "
            "`arms.<name>.learning_rate`?",
        ),
        ("steps=3", "`steps` is not a setting; did you mean `train.steps` or `arms.<name>.steps`?"),
        (
            "seed=3",
            "`seed` is not a setting; did you mean `seeds`, `corpus.seed` or `drift.seed`?",
        ),
    ],
)
def test_what_to_do_about_an_override(tmp_path, override, sentence):
    assert mistakes_of(tmp_path, override) == [sentence]


def test_the_quoted_override_is_taken(tmp_path):
    (tmp_path / "s.yaml").write_text(RECIPE)
    assert load_recipe(tmp_path / "s.yaml", ['prompt.suffix="Answer:"']).prompt.suffix == "Answer:"
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "s.yaml", ["prompt.suffix=[a"])
    assert str(caught.value) == (
        "override 'prompt.suffix=[a': '[a' is not a YAML value; if it is a text, write 'prompt.suffix=\"[a\"'"
    )


def test_what_yaml_reads_as_another_type_says_how_to_write_text(tmp_path):
    yes_no = "; YAML reads yes, no, on and off as true and false, and in quotes as text, as in"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "study: x\ntitle: 2024-01-01\n"
        "corpus: {sources: [{kind: file, name: on, path: p.csv, problem_field: 3, answer_field: [a], "
        "where: {no: [x], ruling: [yes]}}], problem_set: all, teacher: {kind: endpoint, model: m, thinking: off}}\n"
        "suite: {benchmarks: [{name: b, group: math, scorings: {robust: exact}, data: {kind: file, path: q.csv, "
        "fields: {q: q}, id_field: no}}]}\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert sorted(line.removeprefix(f"{path}: ") for line in str(caught.value).split("\n")) == [
        "`corpus.sources.0.answer_field` is ['a'], but must be text",
        f'`corpus.sources.0.name` is True, but must be text{yes_no} "yes"',
        '`corpus.sources.0.problem_field` is 3, but must be text; in quotes it is text: "3"',
        f'`corpus.sources.0.where.ruling.0` is True, but must be text{yes_no} "yes"',
        f'`corpus.sources.0.where` has the key False, but must be text{yes_no} "no"',
        f"`corpus.teacher.thinking` is False, but must be 'on', 'off' or 'stripped'{yes_no} \"off\"",
        f'`suite.benchmarks.0.data.id_field` is False, but must be text{yes_no} "no"',
        '`title` is 2024-01-01, but must be text; in quotes it is text: "2024-01-01"',
    ]
