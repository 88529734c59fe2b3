"""An engine for the length of a `with`: loaded when it is asked for, once, and released in any case."""

import json
from types import SimpleNamespace

import pytest
import torch

from eval.responses import engines
from eval.responses.engines import ENGINE_FILE, EngineOnDemand, engine_facts
from recipes.loading import load_recipe
from tests.paths import SMOKE

FACTS = {"name": "transformers", "version": engines.metadata.version("transformers"), "device": "cpu"}


@pytest.fixture
def loaded(monkeypatch):
    """Engines as they are loaded, each with a list of what was done to it."""
    made = []

    def load(recipe, model_dir, label):
        model = SimpleNamespace(dtype=torch.bfloat16)
        engine = SimpleNamespace(device=torch.device("cpu"), model=model, asked=(model_dir, label), closed=0)
        engine.close = lambda: setattr(engine, "closed", engine.closed + 1)
        made.append(engine)
        return engine

    monkeypatch.setattr(engines, "load_engine", load)
    return made


def test_it_is_loaded_once_recorded_and_closed(loaded, tmp_path):
    with EngineOnDemand(load_recipe(SMOKE, ["suite.engine.batch_size=3"]), tmp_path / "a", "base", tmp_path) as engine:
        assert loaded == []
        assert engine() is engine() is loaded[0]
        assert loaded[0].closed == 0
    assert (len(loaded), loaded[0].closed, loaded[0].asked) == (1, 1, (tmp_path / "a", "base"))
    assert engine_facts(tmp_path) == FACTS | {"dtype": "bfloat16", "batch_size": 3}


def test_it_is_closed_when_asking_fails(loaded, tmp_path):
    def fail():
        with EngineOnDemand(load_recipe(SMOKE, []), tmp_path, "base", tmp_path) as engine:
            engine()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [engine.closed for engine in loaded] == [1]


def test_what_was_never_asked_for_is_not_loaded(loaded, tmp_path):
    with EngineOnDemand(load_recipe(SMOKE, []), tmp_path, "base", tmp_path):
        pass
    assert loaded == []
    assert engine_facts(tmp_path) is None
    (tmp_path / ENGINE_FILE).write_text("{")
    assert engine_facts(tmp_path) is None
    (tmp_path / ENGINE_FILE).write_text(json.dumps(FACTS))
    assert engine_facts(tmp_path) == FACTS
