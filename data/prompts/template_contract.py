"""What a chat template and its tokenizer must keep to, so that training, evaluation and a server see the same ids.

`check_template` reads rendered text alone: a plan calls it on a tokenizer's files. `check_ids` tokenizes. Every
sentence says what was looked at and which setting to change.
"""

import re
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from data.prompts.prompt import completion_ids, render_prompt, turn_end
from data.prompts.thinking import THINK_OPEN
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.training_schema import PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.prompts.prompt import AnyTokenizer

_PROBLEM = "What is 7 + 5?"
_COMPLETIONS = ("<think>\nSeven and five.\n</think>\n\nIt is \\boxed{12}.", "\\boxed{12}", "12")
_TAIL = 40  # characters


def prompts_of(recipe: Recipe, external: bool = False) -> list[PromptSpec]:
    """Every prompt of a study for its base, or for an external checkpoint, which is only evaluated."""
    prompts = [recipe.prompt]
    if not external:
        prompts += [arm.prompt for arm in recipe.arms.values() if arm.prompt is not None]
    if recipe.suite is not None and recipe.suite.thinking is not None:
        prompts.append(recipe.prompt.model_copy(update={"thinking": recipe.suite.thinking}))
    return prompts


def check_contract(
    tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec, name: str, key: str = "model", training: bool = True
) -> None:
    """Refuse a tokenizer and template with which training and inference would see different tokens.

    `tokenizer` has eos, pad and template settled. `name` (the checkpoint) and `key` (the recipe's section) are for
    messages. `training`: whether completions are trained on with it, or only evaluated.

    Raises:
        UserError: as `check_template` and `check_ids` say.
    """
    check_template(tokenizer, prompt, name, key, training)
    check_ids(tokenizer, prompt, name, key)


def check_template(
    tokenizer: "AnyTokenizer", prompt: PromptSpec, name: str, key: str = "model", training: bool = True
) -> None:
    """Refuse a template whose text is not the prompt that a study means.

    Raises:
        UserError: it refuses the messages or loses one of them; it writes the date; it has no such thinking mode; the
            prompt already ends the turn, or begins the thinking of an arm; a turn ends with a token that stops nothing.
    """
    _refuse(name, _fault_of_template(tokenizer, prompt, key, training))


def _fault_of_template(tokenizer: "AnyTokenizer", prompt: PromptSpec, key: str, training: bool) -> str | None:
    other = f"set {key}.chat_template to another one"
    text, problem = _rendered(tokenizer, prompt)
    if problem is not None:
        if prompt.system is not None and _rendered(tokenizer, prompt.model_copy(update={"system": None}))[1] is None:
            return (
                f"it takes no system message ({problem}); set prompt.system to null and say it in prompt.suffix, or "
                f"{key}.chat_template to one that takes it"
            )
        return f"it does not render ({problem}); {other}"
    tail = f"(the prompt ends with {text[-_TAIL:]!r})"
    dates: list[str] = []

    def today(form: str) -> str:
        dates.append(form)
        return "today"

    render_prompt(tokenizer, _PROBLEM, prompt, strftime_now=today)
    if dates:
        return (
            f"it writes today's date, in the form {dates[0]!r}, so the prompts of tomorrow would be other ones; set "
            f"{key}.chat_template to a copy of it with a fixed date"
        )
    if _PROBLEM not in text or prompt.suffix.strip() not in text:
        return f"the prompt does not contain the problem {tail}; {other}"
    if prompt.system is not None and prompt.system.strip() not in text:
        return (
            f"the prompt does not contain prompt.system {tail}; set prompt.system to null and say it in prompt.suffix, "
            f"or {other}"
        )
    modes = [prompt.model_copy(update={"thinking": mode}) for mode in (True, False)]
    if prompt.thinking is not None and len({render_prompt(tokenizer, _PROBLEM, mode) for mode in modes}) == 1:
        return (
            f"thinking is {str(prompt.thinking).lower()} but the prompt is the same with it and without {tail}; "
            f"set prompt.thinking and suite.thinking to null, or {key}.chat_template to one with a thinking mode"
        )
    if text.rstrip().endswith(str(tokenizer.eos_token)):
        return f"the prompt ends with {tokenizer.eos_token}, so there is nothing to continue; {other}"
    if training and text.rstrip().endswith(THINK_OPEN):
        return (
            f"it begins the thinking itself {tail}, so that a demonstration would begin it twice and a reward could "
            f"not tell thinking from answer; set {key}.chat_template to a copy of it without that {THINK_OPEN}"
        )
    end = turn_end(tokenizer)
    if end is not None and end not in (tokenizer.eos_token, tokenizer.pad_token):
        return (
            f"it ends the assistant's turn with {end}, but completions end with {tokenizer.eos_token}, where a "
            f"generation stops; set {key}.eos_token to {end}, or {other}"
        )
    return None


def _rendered(tokenizer: "AnyTokenizer", prompt: PromptSpec) -> tuple[str, Exception | None]:
    """The text of a prompt, or why the template refuses its messages."""
    try:
        return render_prompt(tokenizer, _PROBLEM, prompt), None
    except (TemplateError, TypeError) as error:
        return "", error


def check_ids(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec, name: str, key: str = "model") -> None:
    """Refuse a tokenizer that does not turn a prompt with its completion into the ids of the two, one after the other.

    Raises:
        UserError: a prompt begins twice, contains the padding, or gets tokens behind it; or the text of prompt and
            completion, tokenized as a whole as a server does, is not the ids of the two parts.
    """
    _refuse(name, _fault_of_ids(tokenizer, prompt, key))


def _fault_of_ids(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec, key: str) -> str | None:
    other = f"set {key}.chat_template to another one"
    text = render_prompt(tokenizer, _PROBLEM, prompt)
    ids = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    if ids not in (bare, begin + bare):
        return (
            f"its tokenizer puts more than the beginning around a text ({_tokens(tokenizer, ids[:3])} … "
            f"{_tokens(tokenizer, ids[-3:])}); take the post_processor out of its tokenizer.json"
        )
    if begin and ids[:2] == begin * 2:
        return f"the prompt begins with {tokenizer.bos_token} more than once; {other}"
    if tokenizer.pad_token_id in ids:
        return (
            f"the prompt contains the padding token {tokenizer.pad_token} ({text[-_TAIL:]!r}), whose embedding is not "
            f"trained; set {key}.pad_token to a token that no text contains"
        )
    for completion, said in zip(_COMPLETIONS, completion_ids(tokenizer, list(_COMPLETIONS)), strict=True):
        whole = tokenizer(text + completion + str(tokenizer.eos_token))["input_ids"]
        joined = ids + said
        if whole != joined:
            known = tokenizer.get_vocab()
            absent = [word for word in dict.fromkeys(re.findall(r"<\|\w+\|>", text)) if word not in known]
            if absent:
                return (
                    f"it writes {', '.join(absent)}, which are no tokens of its tokenizer and fall apart; {other}, "
                    "made for this tokenizer"
                )
            at = next(n for n in range(len(whole)) if whole[n : n + 1] != joined[n : n + 1])
            return (
                f"tokens of the prompt and of the completion {completion[:20]!r} merge where they meet (together "
                f"{_tokens(tokenizer, whole[at : at + 3])}, one after the other "
                f"{_tokens(tokenizer, joined[at : at + 3])}); the prompt ends with {text[-_TAIL:]!r}; let the template "
                f"end with {{{{ '\\n' }}}} or a special token instead, or {other}"
            )
    return None


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    names: Any = tokenizer.convert_ids_to_tokens(ids)
    return " ".join(f"{name!r}={token_id}" for name, token_id in zip(names, ids, strict=True))


def _refuse(name: str, fault: str | None) -> None:
    if fault is not None:
        raise UserError(f"the chat template of {name} cannot be used: {fault}")
