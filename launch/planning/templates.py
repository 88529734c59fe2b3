"""Chat templates that cannot be used, found from a checkpoint's files before anything runs; needs no transformers."""

from pathlib import Path

from data.prompts.prompt import settle
from data.prompts.template_contract import check_template, prompts_of
from data.prompts.tokenizer_files import TokenizerFiles
from recipes.schema import ModelSpec, Recipe
from recipes.training_schema import ExternalSpec


def check_templates(recipe: Recipe) -> None:
    """Raise UserError for a local checkpoint whose template or tokens the stage that prepares it would refuse.

    What needs ids is left to that stage, and so is a checkpoint whose files do not show everything.
    """
    if recipe.model is None or not (recipe.arms or recipe.suite):
        return
    base = _checked(recipe, recipe.model, "model", None)
    for name, external in recipe.external.items():
        _checked(recipe, external, f"arms.{name}.external", base)


def _checked(
    recipe: Recipe, spec: ModelSpec | ExternalSpec, key: str, base: TokenizerFiles | None
) -> TokenizerFiles | None:
    files = TokenizerFiles.read(Path(spec.path)) if spec.path is not None else None
    if files is None or spec.path is None:
        return None
    external = isinstance(spec, ExternalSpec)
    if external and base is None and spec.chat_template is None and not files.chat_template:
        return None  # it will get the template of the base
    settle(files, spec, base.chat_template if base is not None else None, key)
    for prompt in prompts_of(recipe, external):
        check_template(files, prompt, spec.path, key, training=not external and bool(recipe.trained))
    return files
