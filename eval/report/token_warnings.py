"""Warnings about the tokens and chat templates of the evaluated models."""

from pathlib import Path
from typing import Any

from eval.report.schema import ReportWarning
from recipes.manifest import read_manifest

_TEMPLATE = "chat_template.jinja"


def template_warnings(study_dir: Path, externals: list[str]) -> list[ReportWarning]:
    """Warnings about a base or external checkpoint whose tokens coincide, or whose template is not the base's."""
    warnings = []
    base = _facts(study_dir / "base")
    for label, folder in (("base", study_dir / "base"), *((name, study_dir / "external" / name) for name in externals)):
        facts = _facts(folder)
        own, used = facts.get("own_tokens", {}), facts.get("eos_token")
        named = own.get("eos_token")
        if named is not None and named == own.get("bos_token") and named != used:
            message = (
                f"{label}: its tokenizer names {named} as bos and as eos token; its responses end at {used}, with "
                "which its chat template ends a turn"
            )
            warnings.append(ReportWarning(code="shared_bos_eos", message=message, model=label))
        if label == "base":
            continue
        if _template(folder) != _template(study_dir / "base"):
            message = (
                f"{label} has a chat template of its own, not the base's, so a part of its gains may be the format"
            )
            warnings.append(ReportWarning(code="other_template", message=message, model=label))
        elif used != base.get("eos_token", used):
            message = f"{label}: its responses end at {used}, those of the base at {base['eos_token']}"
            warnings.append(ReportWarning(code="other_eos", message=message, model=label))
    return warnings


def _facts(folder: Path) -> dict[str, Any]:
    return dict((read_manifest(folder) or {}).get("facts", {}))


def _template(folder: Path) -> str | None:
    path = folder / _TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None
