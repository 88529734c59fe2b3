"""The parts of a rehearsal: small models, the stand-in teacher, killed stages, the table, and what is refused."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from data.sampling import completions
from data.sampling.completions import SampleStore, sample_from_endpoint
from launch.execution.usage import USAGE, descendants, host_bytes
from launch.rehearsal.faults import continuation_fault
from launch.rehearsal.outcome import Row, as_json, engine_text, format_outcome, rows_of, sentence
from launch.rehearsal.run import rehearse
from launch.rehearsal.teacher import serving_teacher
from launch.rehearsal.toy_model import shrunk, toy_config, write_toy_model
from launch.stages import Stage
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.files import write_json
from recipes.loading import load_recipe
from recipes.manifest import start_stage
from recipes.training_schema import PromptSpec
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("name", "kind", "heads", "tied"),
    [
        ("Qwen/Qwen3-14B-Base", "qwen3", 5, False),
        ("Qwen/Qwen3-8B-Base", "qwen3", 4, False),
        ("Qwen/Qwen3-1.7B-Base", "qwen3", 2, True),
        ("meta-llama/Llama-3.1-8B", "llama", 4, False),
        ("ReasoningTransferability/UniReason-Qwen3-14B-RL", "qwen3", 5, False),
    ],
)
def test_a_small_model_keeps_the_geometry_of_heads(name, kind, heads, tied):
    config = toy_config(None, name, 1)
    assert config["model_type"] == kind
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (heads, 1, 128)
    assert config["tie_word_embeddings"] is tied
    assert config["num_hidden_layers"] == 2
    assert toy_config(None, name, 2)["num_key_value_heads"] == 2  # divided between two GPUs


def test_a_model_of_its_own_is_not_taken_for_one_named_after_it():
    assert toy_config(None, "Qwen/Qwen3-8B-Base", 1)["max_position_embeddings"] == 32768
    assert toy_config(None, "Qwen/Qwen3-8B", 1)["max_position_embeddings"] == 40960


def test_layers_of_several_kinds_and_experts_are_cut():
    config = {
        "hidden_size": 640, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 6,
        "intermediate_size": 99, "layer_types": ["a", "b", "a", "b", "a", "b"], "num_experts": 64,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    }  # fmt: skip
    small = shrunk(config)
    assert small["layer_types"] == ["a", "b"]
    assert (small["num_experts"], small["num_experts_per_tok"], small["moe_intermediate_size"]) == (4, 2, 128)
    assert (small["head_dim"], small["num_attention_heads"]) == (80, 4)


@pytest.mark.parametrize(
    ("name", "heads", "key_heads", "hidden"),
    [
        ("SmolLM2-135M", 9, 3, 576),
        ("Qwen3-14B", 40, 8, 5120),
        ("Qwen2.5-7B", 28, 4, 3584),
        ("Llama-3.1-8B", 32, 8, 4096),
    ],
)
def test_heads_divide_the_width(name, heads, key_heads, hidden):
    """transformers refuses a Llama of width 128 with three heads; 3, 5 and 7 heads need 192, 160 and 224."""
    config = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": key_heads,
              "num_hidden_layers": 30, "intermediate_size": 4 * hidden, "vocab_size": 1000}  # fmt: skip
    small = LlamaConfig(**shrunk(config))
    assert small.num_attention_heads == heads // key_heads
    assert small.hidden_size == {3: 192, 5: 160, 7: 224, 4: 128}[small.num_attention_heads]
    assert small.head_dim == hidden // heads


def test_an_unknown_architecture_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"the architecture of owner/name is unknown; run `transfer fetch"):
        toy_config(None, "owner/name", 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The small model of the Llama recipe, with the prompt it was taught on."""
    recipe = load_recipe(ROOT / "recipes/llama-3.1-8b/matched.yaml")
    folder = tmp_path_factory.mktemp("toy") / "llama"
    own = write_toy_model(folder, recipe, recipe.model, [f"What is {n} plus 1?" for n in range(8)], ["3", "4"], 0)
    assert own is False  # nothing of it is on this machine
    return folder


def test_a_small_model_boxes_an_answer_and_ends_its_turn(llama):
    from data.language_model import generate
    from data.prompts.prompt import render_prompt

    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert model.dtype.itemsize == 2
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    recipe = load_recipe(ROOT / "recipes/llama-3.1-8b/matched.yaml")
    prompts = [render_prompt(tokenizer, f"What is {n} plus 1?", recipe.prompt) for n in range(8)]
    found = generate(model, tokenizer, prompts, max_new_tokens=24, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    assert sum(text in ("\\boxed{3}", "\\boxed{4}") and finished for text, _, finished in found) >= 6, found


def test_a_small_model_is_no_base_of_a_study(llama, tmp_path):
    from train.models import prepared_base

    full = load_recipe(ROOT / "recipes/llama-3.1-8b/matched.yaml")
    recipe = full.model_copy(update={"model": full.model.model_copy(update={"path": str(llama)})})
    start_stage(tmp_path / "base", "base", {})
    with pytest.raises(UserError, match="is a tiny random model of `transfer rehearse`; name a model that was trained"):
        prepared_base.run(recipe, tmp_path, tmp_path / "base", False)
    prepared_base.run(recipe.model_copy(update={"rehearsal": True}), tmp_path, tmp_path / "base", False)
    assert json.loads((tmp_path / "base/config.json").read_text())["transfer_rehearsal"] is True


def test_the_stand_in_teacher_speaks_the_protocol(tmp_path, monkeypatch):
    monkeypatch.setattr(completions.random, "shuffle", lambda problems: None)  # problem a is asked first
    problems = [("a", "What is 1 plus 2?"), ("b", "What is 1 plus 2? Say it.")]
    spec = SamplerSpec(kind="endpoint", model="m", samples_per_problem=4, thinking="on", concurrency=1)
    store = SampleStore(tmp_path / "s.jsonl")
    with serving_teacher({"What is 1 plus 2?": "3", "What is 1 plus 2? Say it.": "three"}, faults=True) as url:
        prompt = PromptSpec(suffix=" Box it.", max_completion_tokens=40)
        sample_from_endpoint(spec.model_copy(update={"base_url": url}), prompt, problems, store)
    first, second = store.of("a", 4), store.of("b", 4)
    store.close()
    right = "<think>\nAdd.\n</think>\n\nIt is \\boxed{{{}}}."
    assert [sample.finished for sample in first] == [False, True, True, True]  # one was cut by the length limit
    assert [sample.completion for sample in first[1:]] == [right.format(3), right.format(3), right.format(31)]
    assert [sample.completion for sample in second[:1]] == [right.format("three")]  # the longer problem, not its part


def test_a_continuation_is_checked_by_its_clock(tmp_path):
    stage = Stage("arms/grpo/seed-0", {})
    directory = tmp_path / stage.name
    directory.mkdir(parents=True)
    before = [{"step": 1, "process_seconds": 2.5}]

    def write(clock, metrics):
        for name, rows in (("clock.jsonl", clock), ("metrics.jsonl", metrics)):
            (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    steps = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.1}]
    write([*before, {"step": 2, "process_seconds": 4.0}], steps)
    assert continuation_fault(tmp_path, stage, before, 2) is None
    write([{"step": 1, "process_seconds": 2.6}, {"step": 2, "process_seconds": 4.0}], steps)
    assert continuation_fault(tmp_path, stage, before, 2) == (
        "it did not resume from its checkpoint after step 1 but started over"
    )
    write([*before, {"step": 2, "process_seconds": 4.0}], [*steps, steps[1]])
    assert "has the steps [1, 2, 2], not each of 2 once" in continuation_fault(tmp_path, stage, before, 2)
    assert "before it could be killed" in continuation_fault(tmp_path, stage, None, 2)


def finished(folder, facts):
    write_json(folder / "manifest.json", {"completed": "now", "facts": facts})
    write_json(folder / USAGE, {"seconds": 3.0, "host_bytes": 1_500_000_000, "gpu_bytes": 0})


def test_the_table_names_the_first_failure_and_what_it_kept_from_running(tmp_path):
    stages = [Stage("base", {}), Stage("eval/base", {}, ("base",)), Stage("report", {}, ("eval/base",))]
    finished(tmp_path / "base", {"topology": {"ranks": 2, "engine": "x", "zero_stage": 3},
                                 "engine": {"name": "vllm", "version": "0.31.0", "device": "cpu"}})  # fmt: skip
    write_json(tmp_path / ".failures" / "eval--base.json", {"message": "no bubblewrap; install it", "status": 2})
    rows = rows_of(tmp_path, stages, {})
    assert [(row.stage, row.verdict, row.reason) for row in rows] == [
        ("base", "passed", None),
        ("eval/base", "failed", "no bubblewrap; install it"),
        ("report", "not run", "needs eval/base"),
    ]
    assert rows[0].engine == "2 ranks ZeRO-3, vllm 0.31.0 cpu"
    outcome = as_json(rows, (), ("no GPU",), 61.0)
    assert outcome["passed"] is False
    assert outcome["sentence"] == "not rehearsed: eval/base failed after 1 of 3 stages: no bubblewrap; install it"
    text = format_outcome(outcome)
    assert "base             3      1.5       -  2 ranks ZeRO-3, vllm 0.31.0 cpu  passed" in text
    assert text.endswith(f"REHEARSAL of 61 s: {outcome['sentence']}")


def test_a_rehearsal_that_passed_says_what_was_killed_and_what_is_missing():
    rows = [Row("base", 1.0, 1, 0, "", "passed"), Row("arms/a/seed-0", 1.0, 1, 0, "", "passed", None, True)]
    assert sentence(rows, ("no GPU",)) == (
        "rehearsed: all 2 stages passed, 1 of them killed and resumed; 1 thing(s) could not be rehearsed here"
    )
    assert sentence(rows[:1], ()) == "rehearsed: all 1 stages passed"
    assert engine_text({}) == ""


def test_a_stage_that_was_killed_and_began_again_has_failed(tmp_path):
    stages = [Stage("arms/a/seed-0", {})]
    finished(tmp_path / "arms/a/seed-0", {})
    (row,) = rows_of(tmp_path, stages, {"arms/a/seed-0": "it began again"})
    assert (row.verdict, row.reason, row.resumed) == ("failed", "it began again", False)
    (row,) = rows_of(tmp_path, stages, {"arms/a/seed-0": None})
    assert (row.verdict, row.resumed) == ("passed", True)


def test_a_folder_with_something_else_is_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and is not a rehearsal"):
        rehearse(load_recipe(ROOT / "recipes/pocket/smoke.yaml"), tmp_path)
    foreign = (("assets/logo.txt", "drawn by hand"), ("rehearsal.json", '["of a play"]'), ("rehearsal.json", "{}"))
    for number, (name, content) in enumerate(foreign):
        other = tmp_path / str(number)
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text(content)
        with pytest.raises(UserError, match="is not empty and is not a rehearsal"):
            rehearse(load_recipe(ROOT / "recipes/pocket/smoke.yaml"), other)
        assert (other / name).read_text() == content
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_rehearsal_that_runs_is_not_replaced(tmp_path):
    import subprocess
    import sys

    write_json(tmp_path / "rehearsal.json", {"rehearsal": True, "passed": None})
    code = "import sys; from pathlib import Path; from recipes.files import locked\nwith locked(Path(sys.argv[1])):"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}\n print(flush=True); input()", str(tmp_path / "study")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    with pytest.raises(UserError, match="is being rehearsed by another process; wait for it"):
        rehearse(load_recipe(ROOT / "recipes/pocket/smoke.yaml"), tmp_path)
    holder.communicate(b"\n")
    assert (tmp_path / "rehearsal.json").exists()


def test_usage_counts_child_processes(tmp_path):
    import os
    import subprocess
    import sys

    # In a process of its own: this one has other children, which come and go.
    code = """
import os, subprocess, sys
from pathlib import Path
from launch.execution.usage import descendants, measured
large = "import time; x = bytearray(200 << 20); time.sleep(2)"
for name, command in (("alone", "import time; time.sleep(1)"), ("usage", large)):
    Path(name).mkdir()
    with measured(Path(name)):
        child = subprocess.Popen([sys.executable, "-c", command])
        assert child.pid in descendants(os.getpid())
        child.wait()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    usage, alone = (json.loads((tmp_path / name / USAGE).read_text()) for name in ("usage", "alone"))
    assert 190 << 20 < usage["host_bytes"] - alone["host_bytes"] < 260 << 20
    assert 2.0 <= usage["seconds"] < 20


def test_what_processes_share_counts_once(tmp_path):
    """Three processes map a file of 64 MB and have 32 MB of their own each, as their proportional set sizes say."""
    import subprocess
    import sys

    file = tmp_path / "weights"
    file.write_bytes(bytes(64 << 20))
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(view[::4096]); own = bytearray(b'x') * (32 << 20); print(flush=True); input()"
    )
    start = [sys.executable, "-c", code, str(file)]
    children = [subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for child in children:
        child.stdout.readline()
    counted = host_bytes(child.pid for child in children)
    rollups = [Path(f"/proc/{child.pid}/smaps_rollup").read_text() for child in children]
    proportional = sum(
        int(line.split()[1]) << 10 for text in rollups for line in text.split("\n") if line.startswith("Pss:")
    )
    for child in children:
        child.communicate(b"\n")
    assert 160 << 20 < counted < 200 << 20
    assert abs(counted - proportional) < 24 << 20
    assert host_bytes([children[0].pid]) == 0
    assert descendants(children[0].pid) == [children[0].pid], "of one that has ended"
