"""Questions that are longer than the evaluation allows are found before anything is trained."""

import pytest

from data.prompts.pocket_tokenizer import counting_tokenizer
from eval.questions.build import read_source_questions
from launch.commands.main import main
from launch.planning.lengths import check_questions
from recipes.errors import UserError
from recipes.loading import load_recipe


def longest_question(recipe):
    (benchmark,) = [item for item in recipe.benchmarks if item.name == "rulings"]
    texts = []
    for question in read_source_questions(recipe, benchmark, None):
        fields = question.fields
        options = "".join(f"\n({letter.upper()}) {fields[letter]}" for letter in "abc")
        texts.append(f"{fields['question']}{options}\n\nPut the letter of the right answer into \\boxed{{}}.")
    tokenizer = counting_tokenizer(recipe.model.pocket)
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def test_a_question_above_the_limit_is_refused_and_one_at_it_is_not(law):
    recipe = load_recipe(law)
    longest = longest_question(recipe)
    check_questions(load_recipe(law, [f"suite.max_prompt_tokens={longest}"]))
    with pytest.raises(UserError) as error:
        check_questions(load_recipe(law, [f"suite.max_prompt_tokens={longest - 1}"]))
    assert str(error.value) == (
        f"benchmark 'rulings': 1 of 12 questions of rulings.yaml are longer than suite.max_prompt_tokens "
        f"{longest - 1}, the longest has {longest} tokens; raise it"
    )


def test_plan_and_run_refuse_before_anything_is_written(law, tmp_path, capsys):
    for command in ("plan", "run"):
        assert main([command, str(law), "suite.max_prompt_tokens=50", "--out", str(tmp_path / "study")]) == 2
        assert (
            "12 of 12 questions of rulings.yaml are longer than suite.max_prompt_tokens 50" in capsys.readouterr().err
        )
    assert not (tmp_path / "study").exists()
