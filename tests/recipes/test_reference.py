"""The reference of recipe keys says what the schema says, and the page in docs/ is that reference."""

import json

import pytest

from launch.commands.main import main
from launch.site_file import JobSpec, SiteSpec
from recipes.errors import UserError
from recipes.reference import all_sections, chosen_sections, reference_text
from recipes.schema import Recipe
from tests.paths import DOCS


def test_page_in_docs_is_the_reference():
    page = DOCS / "recipe-keys.md"
    assert page.read_text() == reference_text(), "run: transfer config > docs/recipe-keys.md"


def test_page_of_the_site_file_is_its_reference(capsys):
    assert main(["config", "--site-file"]) == 0
    page = DOCS / "site-keys.md"
    assert page.read_text() == capsys.readouterr().out, "run: transfer config --site-file > docs/site-keys.md"


def test_keys_of_the_site_file(capsys):
    kind = ["config", "--site-file", "--json"]
    assert main(kind) == 0
    sections = {section["paths"][0]: section for section in json.loads(capsys.readouterr().out)}
    assert list(sections) == ["", "container", "stages.<name>"]
    assert {key["name"] for key in sections[""]["keys"]} == set(SiteSpec.model_fields)
    assert {key["name"] for key in sections["stages.<name>"]["keys"]} == set(JobSpec.model_fields)
    assert [key["name"] for section in sections.values() for key in section["keys"] if not key["meaning"]] == []
    assert main([*kind, "stages.eval.time_limit"]) == 0
    (section,) = json.loads(capsys.readouterr().out)
    (key,) = section["keys"]
    assert (key["name"], key["values"], key["default"]) == ("time_limit", "text or null", "null")
    assert key["meaning"].startswith("Time limit of a job in Slurm's format")
    assert main([*kind, "xyzzy"]) == 2
    assert capsys.readouterr().err.startswith("transfer: site files have no key 'xyzzy'; the outermost are partition, ")


def test_keys_have_the_values_defaults_and_meanings_of_the_schema():
    (section,) = chosen_sections("suite.temperature")
    (key,) = section.keys
    assert (key.values, key.default) == ("number, at least 0", "1.0")
    assert key.meaning.startswith("Sampling temperature. 0: greedy")
    (train,) = chosen_sections("train.steps")
    assert [(key.name, key.values, key.default) for key in train.keys] == [("steps", "integer, at least 1", None)]
    sections = {path: section for section in all_sections() for path in section.paths}
    keys = {key.name: key for key in sections["model"].keys}
    assert keys["dtype"].values == "`float32`, `bfloat16`"
    seeds = {key.name: key for key in sections[""].keys}["seeds"]
    assert (seeds.values, seeds.default) == ("list of integer, at least 0, below 2**32", "[0]")


def test_every_section_is_there_once_and_every_key_is_explained():
    sections = all_sections()
    paths = [path for section in sections for path in section.paths]
    assert len(set(paths)) == len(paths)
    assert {"prompt", "arms.<name>", "corpus.sources.0", "suite.benchmarks.0.data", "train.lora"} <= set(paths)
    assert {"prompt", "arms.<name>.prompt"} in [set(section.paths) for section in sections]
    assert {key.name for key in sections[0].keys} == Recipe.model_fields.keys() - {"lock", "rehearsal"}
    assert [key.name for section in sections for key in section.keys if not key.meaning] == []


def test_unknown_key_names_the_outermost_ones(capsys):
    with pytest.raises(UserError, match="no key 'xyzzy'; the outermost are study, title, seeds, model"):
        chosen_sections("xyzzy")
    assert main(["config", "train.stpes"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "path", "name"),
    [
        ("arms.grpo.beta", "arms.<name>", "beta"),
        ("corpus.sources.2.path", "corpus.sources.0", "path"),
        ("arms.theirs.external.path", "arms.<name>.external", "path"),
        ("corpus.teacher.stored.path", "corpus.teacher.stored", "path"),
        ("corpus.pass_rate.sampler.stored.path", "corpus.pass_rate.sampler.stored", "path"),
    ],
)
def test_a_key_is_found_as_the_command_line_writes_it(key, path, name):
    (section,) = chosen_sections(key)
    assert path in section.paths
    assert [item.name for item in section.keys] == [name]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trian", "train"),
        ("beta", "arms.<name>.beta"),
        ("train.step", "train.steps"),
        ("suite.benchmarks.data.fields", "suite.benchmarks.0.data.fields"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(key, meant):
    with pytest.raises(UserError) as error:
        chosen_sections(key)
    assert str(error.value) == f"recipes have no key {key!r}; did you mean {meant}?"
