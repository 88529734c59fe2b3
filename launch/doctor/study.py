"""Checks of the surroundings: hub, cluster, driver, attention, and the needs of one recipe."""

import os
import re
import shutil
import urllib.request
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

from data.attention import FLASH, missing
from launch.doctor.verdict import Verdict, shortened
from recipes.errors import UserError
from recipes.schema import ModelSpec

_STATES: dict[str, Literal["note", "warn", "fail"]] = {
    "error": "fail", "missing": "warn", "warning": "warn", "note": "note",
}  # fmt: skip
"""Severity of a finding -> state of its verdict."""
_OLDEST_DRIVER = {12: 525, 13: 580}
"""Major version of CUDA -> oldest driver that runs its programs (NVIDIA's table of minor version compatibility)."""


def hub() -> Verdict:
    """Whether the hub answers, or with HF_HUB_OFFLINE whether its cache holds anything."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    cache = cache.expanduser()
    cached = len(list(cache.glob("*--*")))
    kept = f"{cached} repositories in {cache}"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        remedy = "run `transfer fetch RECIPE` where there is a network, with the same HF_HOME"
        return Verdict("ok" if cached else "warn", f"offline; {kept}", "" if cached else remedy)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=10):
            return Verdict("ok", f"{endpoint} answers; {kept}")
    except OSError as error:
        return Verdict(
            "warn", f"{endpoint} does not answer ({error}); {kept}",
            "set HF_HUB_OFFLINE=1 here, and run `transfer fetch RECIPE` on a machine with a network",
        )  # fmt: skip


def cluster() -> Verdict:
    """Whether Slurm answers, and the settings that a study depends on."""
    from launch.slurm.submit import slurm

    if shutil.which("sbatch") is None:
        return Verdict("skipped", "sbatch is not installed", "run this command on a login node to check the cluster")
    try:
        config = dict(re.findall(r"^(\w+)\s*=\s*(.*)$", slurm("scontrol", "show", "config"), re.MULTILINE))
        slurm("squeue", "--me", "--noheader")
    except UserError as error:
        return Verdict("warn", shortened(str(error)), "ask the cluster's support, if this machine is part of one")
    text = f"Slurm {config.get('SLURM_VERSION', '?')}, KillWait {config.get('KillWait', '?')}"
    if config.get("JobRequeue", "1").strip() == "0":
        return Verdict("warn", f"{text}, JobRequeue is off", "jobs request --requeue themselves; some sites refuse it")
    return Verdict("ok", text)


def site_file(option: Path | None) -> list[Verdict]:
    """Whether the site file can be used, each mistake a verdict: that of --site, of $TRANSFER_SITE, or the default."""
    from launch.site_file import default_site, find_site, load_site

    named = option is not None or bool(os.environ.get("TRANSFER_SITE"))
    if not named and not default_site().exists():
        if shutil.which("sbatch") is None:
            return [Verdict("skipped", "there is none; only --on slurm needs one")]
        return [Verdict("warn", f"there is none at {default_site()}", "copy launch/site.example.yaml and fill it in")]
    try:
        path = find_site(option)
        load_site(path)
    except UserError as error:
        return [Verdict("fail", text) for text in str(error).splitlines()]
    return [Verdict("ok", f"{path} is valid")]


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Version of the NVIDIA driver of this machine; None without one."""
    try:
        match = re.search(r"Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", path.read_text())
    except OSError:
        return None
    return match[1] if match else None


def driver_mismatch(cuda: str | None, driver: str | None, library_path: str) -> str | None:
    """Why a torch built for `cuda` does not run on `driver`, or with the libraries of a module; None if it should."""
    if cuda is None:
        return "torch is built without CUDA"
    major = int(cuda.split(".")[0])
    needed = _OLDEST_DRIVER.get(major)
    if driver is not None and needed is not None and int(driver.split(".")[0]) < needed:
        return f"the driver is {driver} and torch is built for CUDA {cuda}, which needs {needed} or newer"
    others = [int(version) for version in re.findall(r"(?i)cuda(?:toolkit)?[-_/](\d+)", library_path)]
    wrong = next((other for other in others if other != major), None)
    if wrong is not None:
        return f"torch brings the libraries of CUDA {cuda} and LD_LIBRARY_PATH puts those of CUDA {wrong} before them"
    return None


def remedy_of_driver(cuda: str | None) -> str:
    """What to do about a mismatch."""
    if cuda is None:
        return "make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130"
    return "a newer driver, or torch and vLLM wheels built for the driver's CUDA; no cuda module in the site file"


def attention(gpus: list[str]) -> Verdict:
    """Whether flash attention is installed, and on a GPU whether its kernel loads."""
    spec = ModelSpec(path="any/model", dtype="bfloat16", attention="flash_attention_2")
    if reason := missing(spec):
        return Verdict(
            "warn" if gpus else "skipped", f"no flash attention: {reason}",
            "pip install -e '.[flash]' and `transfer fetch RECIPE`; recipes with attention: sdpa do not need it",
        )  # fmt: skip
    if not gpus:
        return Verdict("skipped", "flash attention is installed; only a GPU shows whether it loads")
    from data.attention import usable_attention

    try:
        usable_attention(spec)
    except UserError as error:
        return Verdict("fail", shortened(str(error)), "fix the reason above, or use model.attention=sdpa")
    for package, source in (("flash-attn", "package"), ("kernels", FLASH["flash_attention_2"].kernel)):
        with suppress(metadata.PackageNotFoundError):
            return Verdict("ok", f"{source}: {package} {metadata.version(package)}")
    return Verdict("ok", "package: a local kernel")


def study(path: str, site_file: Path | None) -> list[Verdict]:
    """What a recipe lacks on this machine, or on the cluster of a site file: a verdict for each finding."""
    from launch.hardware import visible_gpus
    from launch.planning.findings import disk_of_studies, findings
    from launch.site_file import find_site, load_site
    from launch.stages import build_stages
    from recipes.loading import load_recipe

    recipe = load_recipe(path, [])
    try:
        site = load_site(find_site(site_file)) if site_file is not None else None
    except UserError:  # a check of its own says why
        return [Verdict("skipped", f"{recipe.study} is not checked, because the site file cannot be used")]
    stages, study_dir, gpus = build_stages(recipe), Path("runs") / recipe.study, visible_gpus()
    lacking = findings(recipe, stages, study_dir, site, gpus)
    lacking += disk_of_studies([(recipe, stages, study_dir)], site, gpus)
    rows = [Verdict(_STATES[item.severity], item.sentence, item.remedy) for item in lacking]
    rows.sort(key=lambda row: row.state != "fail")
    return rows or [Verdict("ok", f"{recipe.study} has what it needs {'here' if site is None else 'there'}")]
