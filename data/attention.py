"""Which implementation of attention a process can really use: the recipe's, the recipe's fallback, or none.

transformers takes flash attention from two places: the package `flash-attn` (or `flash-attn-3`), which is compiled
against one torch, and the package `kernels`, which loads a compiled kernel from the hub. `missing` looks without
importing torch, for plans; `usable_attention` loads the kernel, on the machine it will run on.
"""

import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recipes.errors import UserError
from recipes.schema import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FlashAttention(NamedTuple):
    """Where transformers finds one implementation."""

    module: str
    distribution: str
    at_least: tuple[int, ...]
    kernel: str
    """Repository on the hub that `kernels` loads it from."""
    kernel_version: int
    """Major version of that repository, which is its branch `v<n>`."""


_KERNEL_3 = "kernels-community/vllm-flash-attn3"
# As transformers 5.17 has them; tests/train/test_attention.py compares.
FLASH = {
    "flash_attention_2": FlashAttention("flash_attn", "flash-attn", (2, 3, 3), "kernels-community/flash-attn2", 3),
    "flash_attention_3": FlashAttention("flash_attn_interface", "flash-attn-3", (0,), _KERNEL_3, 1),
}
KERNELS_FROM, KERNELS_BELOW = (0, 16, 0), (0, 17, 0)
REMEDY = (
    "run pip install -e '.[flash]' and `transfer fetch RECIPE`, set model.attention=sdpa, or allow it with "
    "model.attention_fallback=sdpa"
)


def missing(spec: ModelSpec, offline: bool = False) -> str | None:
    """Why `model.attention` cannot be used by what is installed here; None if nothing speaks against it.

    Looks at installed packages and at the hub's cache alone. Whether the kernel loads, `usable_attention` finds out.
    `offline`: it will run with the hub offline, whatever holds for this process.
    """
    flash = FLASH.get(spec.attention)
    if flash is None:
        return None
    if spec.dtype != "bfloat16":
        return f"{spec.attention} needs model.dtype bfloat16, not {spec.dtype}"
    installed = _version(flash.distribution)
    if find_spec(flash.module) is not None and installed is not None and installed >= flash.at_least:
        return None
    kernels = _version("kernels")
    if find_spec("kernels") is None or kernels is None:
        return f"neither {flash.distribution} nor kernels is installed"
    if not KERNELS_FROM <= kernels < KERNELS_BELOW:
        low, high = (".".join(map(str, bound)) for bound in (KERNELS_FROM, KERNELS_BELOW))
        return f"kernels {metadata.version('kernels')} is not between {low} and {high}, which transformers takes"
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline and not _is_cached(flash):
        return f"it runs with the hub offline and the kernel {flash.kernel} is not in {_cache()}"
    return None


def _version(distribution: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in re.findall(r"\d+", metadata.version(distribution))[:3])
    except metadata.PackageNotFoundError:
        return None


def _cache() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    folder = os.environ.get("KERNELS_CACHE") or os.environ.get("HF_HUB_CACHE") or home / "hub"
    return Path(folder).expanduser()


def _is_cached(flash: FlashAttention) -> bool:
    """Whether `kernels` finds the kernel without a network: by the branch, not by the commit it was at."""
    local = os.environ.get("LOCAL_KERNELS", "")
    if any(entry.partition("=")[0] == flash.kernel for entry in local.split(":")):
        return True
    return (_cache() / f"kernels--{flash.kernel.replace('/', '--')}" / "refs" / f"v{flash.kernel_version}").is_file()


def fetch_kernel(spec: ModelSpec) -> str | None:
    """Bring the kernel of `model.attention` to this machine, for nodes without a network; its commit.

    None where no kernel is needed: attention is not flash attention, its own package is installed, or `kernels` is not.

    Raises:
        UserError: the hub has no build for the torch that is installed here, or cannot be reached.
    """
    flash = FLASH.get(spec.attention)
    if flash is None or _version("kernels") is None or _version(flash.distribution) is not None:
        return None
    from kernels import install_kernel

    try:
        # By its branch: a kernel that was fetched by a commit is not found again without a network.
        folder = Path(install_kernel(flash.kernel, revision=f"v{flash.kernel_version}"))
    except Exception as error:  # no network, no build for the torch that is installed here, a damaged file
        raise UserError(
            f"the kernel {flash.kernel} for model.attention={spec.attention} cannot be fetched "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); fetch again where the torch of the GPU nodes "
            "is installed, or set model.attention=sdpa"
        ) from None
    parts = folder.parts  # .../snapshots/<commit>/build/<variant>
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "local"


def usable_attention(spec: ModelSpec, dtype: str | None = None) -> str:
    """The attention this process will use: the recipe's if it can be loaded, else the recipe's fallback.

    `dtype`: number format of a model that is only read. Flash attention has no float32; sdpa takes its place.

    Raises:
        UserError: it cannot, and the recipe allows nothing else.
    """
    if dtype == "float32" and spec.attention in FLASH:
        return "sdpa"
    reason = missing(spec) or _cannot_load(spec.attention)
    if reason is None:
        return spec.attention
    if spec.attention_fallback is None:
        raise UserError(f"model.attention={spec.attention} cannot be used: {reason}; {REMEDY}")
    print(f"model.attention={spec.attention} cannot be used ({reason}): {spec.attention_fallback} instead", flush=True)
    return spec.attention_fallback


def _cannot_load(attention: str) -> str | None:
    """Why transformers cannot load an implementation on this machine; None if it can."""
    flash = FLASH.get(attention)
    if flash is None:
        return None
    import torch
    from transformers.utils import import_utils

    if not torch.cuda.is_available():
        return "no GPU is visible here"
    if torch.cuda.get_device_capability()[0] < 8:
        return f"{torch.cuda.get_device_name()} is older than an A100"
    if getattr(import_utils, f"is_flash_attn_{attention[-1]}_available")():
        return None
    from transformers.integrations.hub_kernels import get_kernel

    try:
        get_kernel(flash.kernel, version=flash.kernel_version)
    except Exception as error:  # whatever the build raises: a missing variant, a symbol, a cache without it
        return f"the kernel {flash.kernel} cannot be loaded ({(str(error) or type(error).__name__).splitlines()[0]})"
    return None


def attention_that_ran(model: "PreTrainedModel") -> str:
    """What a loaded model computes attention with: transformers' name, or a kernel of the hub with its commit."""
    name = str(model.config._attn_implementation)
    commit = _loaded_kernels().get(name)
    return f"{name}@{commit}" if commit else name


def main(arguments: list[str]) -> int:
    """Say what a model section (JSON) would use here; exit status 2 with a sentence if that is nothing."""
    try:
        implementation = usable_attention(ModelSpec.model_validate_json(arguments[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"attention: {implementation}")
    return 0


def _loaded_kernels() -> Mapping[str, str]:
    """Commits of the kernels this process has loaded, by repository."""
    if "kernels" not in sys.modules:
        return {}
    from kernels import get_loaded_kernels

    places = (loaded.repo_info for loaded in get_loaded_kernels())
    return {place.repo_id: str(place.revision)[:12] for place in places if place is not None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
