"""What an OpenAI-compatible server says about itself, queried before its first request."""

import urllib.parse
from typing import Any

from recipes.errors import UserError

_SECONDS = 10.0


def served_models(base_url: str, headers: dict[str, str]) -> dict[str, int | None] | None:
    """Name -> longest text in tokens, as far as told, of each model a server has; None where it does not say.

    `base_url`: the address up to /v1, or of one of the services below it.
    """
    answer = _get(_root(base_url) + "/v1/models", headers)
    try:
        return {str(row["id"]): row.get("max_model_len") for row in answer["data"]}
    except (KeyError, TypeError, AttributeError):
        return None


def server_version(base_url: str, headers: dict[str, str]) -> str | None:
    """The version of a vLLM server; None of another."""
    answer = _get(_root(base_url) + "/version", headers)
    version = answer.get("version") if isinstance(answer, dict) else None
    return str(version) if version is not None else None


def require_served(
    base_url: str,
    headers: dict[str, str],
    model: str,
    model_key: str,
    tokens: int,
    limits: str,
    least: int | None = None,
) -> None:
    """Refuse a server that has another model, or takes shorter texts than will be sent. One that does not say passes.

    Args:
        base_url: see `served_models`.
        headers: sent along.
        model: name the requests will have.
        model_key: the recipe's key of that name.
        tokens: longest prompt and response together.
        limits: the recipe's keys that decide `tokens`.
        least: fewer tokens than this cannot work at all; where it is given, `tokens` is only what is recommended.

    Raises:
        UserError: naming what to set.
    """
    served = served_models(base_url, headers)
    if not served:
        return
    if model not in served:
        raise UserError(
            f"the server at {base_url} serves {', '.join(sorted(served))}, not {model}; set {model_key}, or start the "
            f"server with --served-model-name {model}"
        )
    longest = served[model]
    if isinstance(longest, int) and longest < (tokens if least is None else least):
        raise UserError(
            f"the server at {base_url} takes {longest:,} tokens of prompt and response, but {tokens:,} may be needed; "
            f"start it with --max-model-len {tokens}, or lower {limits}"
        )


def _root(base_url: str) -> str:
    parts = urllib.parse.urlsplit(base_url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.partition("/v1")[0].rstrip("/"), "", ""))


def _get(url: str, headers: dict[str, str]) -> Any:
    """The JSON a server answers with; None where it has no such address, or cannot be reached now."""
    import httpx

    try:
        response = httpx.get(url, headers=headers, timeout=_SECONDS)
        return response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
