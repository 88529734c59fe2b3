"""One chunk of questions to one model, through lm-evaluation-harness: task files in, prompts and responses out."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import set_seed

from data.prompts.thinking import THINK_OPEN
from eval.questions.forms import Question
from eval.questions.task_files import task_path
from eval.responses.engines import Seeds, render_chat, thinking_mode
from recipes.errors import UserError
from recipes.manifest import hash_json
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec


def build_task(
    recipe: Recipe, folder: Path, benchmark: BenchmarkSpec, prompting: str, questions: list[Question]
) -> tuple[Task, bool]:
    """A benchmark's task over the given questions, and whether it is asked through the chat template.

    What the task file says stands; what is the same for all files (data, samples, decoding, what is kept) is added.

    Raises:
        UserError: the file is no task, or stores text where the recipe expects likelihoods, or the reverse.
    """
    assert recipe.suite is not None
    path = task_path(folder, benchmark.name, prompting)
    values = load_yaml(path)
    values.setdefault("task", path.stem)
    values.setdefault("output_type", "generate_until")
    chat = bool((values.get("metadata") or {}).get("chat_template", True))
    stores_likelihood = values["output_type"] == "multiple_choice"
    if stores_likelihood != (prompting in benchmark.likelihood):
        raise UserError(
            f"{path} has output_type {values['output_type']} but the recipe "
            + ("does not list" if stores_likelihood else "lists")
            + f" {prompting!r} under `likelihood` of {benchmark.name}"
        )
    rows = Dataset.from_list(
        [{"question_id": q.question_id, "suffix": recipe.prompt.suffix, **q.fields} for q in questions]
    )
    values |= {
        "custom_dataset": lambda **_: {"test": rows},
        "dataset_kwargs": None,
        "test_split": "test",
        "num_fewshot": 0,
        "process_results": lambda document, results: {"answered": 1.0},
        "metric_list": [{"metric": "answered", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0} | (values.get("metadata") or {}),
    }
    values.setdefault("doc_to_target", "{{question_id}}")
    if not stores_likelihood:
        temperature = recipe.suite.temperature_of(benchmark)
        decoding: dict[str, Any] = {"do_sample": temperature > 0, "max_gen_toks": recipe.suite.max_response_tokens}
        if temperature > 0:
            decoding |= {"temperature": temperature, "top_p": recipe.suite.top_p}
            if recipe.suite.engine.kind == "hf":
                decoding["top_k"] = recipe.suite.top_k  # 0 means all here, and must be said: the default is 50
            elif recipe.suite.top_k:
                decoding["top_k"] = recipe.suite.top_k
        until = (values.get("generation_kwargs") or {}).get("until", [])
        values |= {
            "generation_kwargs": {"until": until, **decoding},
            "repeats": recipe.suite.samples(benchmark),
            "filter_list": [
                {"name": "all_samples", "filter": [{"function": "custom", "filter_fn": lambda texts, documents: texts}]}
            ],
        }
    return TaskManager(include_path=str(folder), include_defaults=False).load([values])["tasks"][values["task"]], chat


def build_requests(recipe: Recipe, task: Task, chat: bool, apply_chat_template: Any, tokenizer_name: str) -> None:
    """Make the harness render a task's prompts, into `task.instances`."""
    task.build_all_requests(
        rank=0,
        world_size=1,
        system_instruction=recipe.prompt.system,
        apply_chat_template=chat,
        chat_template=apply_chat_template if chat else None,
        tokenizer_name=tokenizer_name if chat else "",
    )


def render_prompts(
    recipe: Recipe,
    tokenizer: Any,
    folder: Path,
    benchmark: BenchmarkSpec,
    prompting: str,
    questions: list[Question],
) -> list[str]:
    """The prompts of a benchmark as a model with this tokenizer is asked, without the model."""
    task, chat = build_task(recipe, folder, benchmark, prompting, questions)
    mode = thinking_mode(recipe)
    template: dict[str, Any] = {} if mode is None else {"enable_thinking": mode}

    def apply(messages: Any, add_generation_prompt: bool = True) -> str:
        return render_chat(tokenizer, messages, add_generation_prompt, template)

    build_requests(recipe, task, chat, apply, str(tokenizer.name_or_path))
    prompts: dict[int, str] = {}
    for instance in task.instances:  # several for one question where answers are given or responses repeated
        prompts.setdefault(instance.doc_id, instance.args[0])
    return [prompts[number] for number in range(len(questions))]


def _context(config: Any) -> float | None:
    """Tokens a model was made for, generously where its positions are scaled; None where nobody says."""
    longest = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return None if longest is None else longest * max(1, scaling.get("factor") or 1)


def _require_lengths(recipe: Recipe, model: Any, task: Task, chat: bool, questions: list[Question]) -> None:
    """Refuse prompts that would be cut, which the harness does from the left without a word, or fill the context."""
    assert recipe.suite is not None
    build_requests(recipe, task, chat, model.apply_chat_template, model.tokenizer_name)
    longest = recipe.suite.max_prompt_tokens
    context = None if recipe.model is None or recipe.model.pocket else _context(getattr(model, "config", None))
    for instance in task.instances:
        length = len(model.tokenizer(instance.args[0])["input_ids"])
        if length > longest:
            question = questions[instance.doc_id].question_id
            raise UserError(
                f"the prompt of question {question} of {task.task_name} has {length} tokens but "
                f"suite.max_prompt_tokens is {longest}; raise it"
            )
        if context is not None and length >= context:
            question = questions[instance.doc_id].question_id
            raise UserError(
                f"the prompt of question {question} of {task.task_name} has {length} tokens and the model's context is "
                f"{context:g}, which leaves none for a response; leave this benchmark out, or that question"
            )


def ask(
    recipe: Recipe, model: LM, task: Task, chat: bool, questions: list[Question], chunk_seed: int
) -> list[dict[str, Any]]:
    """What the model said to each question: prompt, responses (or likelihoods of the answers) and their lengths.

    Raises:
        UserError: a prompt is longer than `suite.max_prompt_tokens`, or leaves no room in the model's context.
    """
    set_seed(chunk_seed)
    if hasattr(model, "seeds"):
        model.seeds = Seeds(chunk_seed)
    name = str(task.task_name)
    _require_lengths(recipe, model, task, chat, questions)
    result = evaluate(
        lm=model,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        system_instruction=recipe.prompt.system,
        apply_chat_template=chat,
        log_samples=True,
        bootstrap_iters=0,
    )
    tokenizer: Any = model.tokenizer
    rows = []
    assert result is not None
    for sample in sorted(result["samples"][name], key=lambda sample: sample["doc_id"]):
        question = questions[sample["doc_id"]]
        prompt = sample["arguments"][0][0]
        row = {"question_id": question.question_id, "prompt": prompt, "prompt_hash": hash_json(prompt)}
        if prompt.rstrip().endswith(THINK_OPEN):  # the template begins the thinking, so the response does not
            row["opens_thinking"] = True
        if sample["arguments"][0][1:] and task.OUTPUT_TYPE == "multiple_choice":
            answers = [arguments[1] for arguments in sample["arguments"]]
            likelihoods = [float(response[0][0]) for response in sample["resps"]]
            row |= {"answers": answers, "likelihoods": likelihoods}
        else:
            responses = list(sample["resps"][0])
            # The harness returns text; its length is that of the text tokenized again.
            row |= {
                "responses": responses,
                "tokens": [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in responses],
            }
        rows.append(row)
    return rows
