"""The facts in the manifest of a finished arm: written once, by `train/run.py`, and read here."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """What a run recorded. Manifests of earlier versions lack what has a default."""

    template_hash: str
    presented_problems: list[str]
    """Ids, each once, sorted."""
    contributed_problems: list[str]
    """Those of them with a non-zero gradient in some step."""
    matched_on: dict[str, Any]
    """The arm's settings when it was trained; a setting that was added later is absent."""
    totals: dict[str, int]
    """Of the ledger."""
    skipped_tokens: int = 0
    topology: dict[str, Any] = field(default_factory=dict)
    attention: str
    """The implementation that ran; earlier manifests have only the configured one."""
    device: str = ""
    engine: dict[str, str | None] | None = None
    """What sampled the completions."""
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """The facts in the manifest of a finished arm."""
        stored = {"attention": manifest["facts"]["matched_on"].get("attention")} | manifest["facts"]
        return cls(**{one.name: stored[one.name] for one in fields(cls) if one.name in stored})

    def dump(self) -> dict[str, Any]:
        """As they are stored in the manifest."""
        return asdict(self)
