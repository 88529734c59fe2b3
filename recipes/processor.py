"""What decides which kernels torch, MKL and oneDNN compute with on a CPU. Others round differently.

It is read without torch: the processor's instructions, and the variables that limit their use.
"""

import os
import platform
import re
from pathlib import Path

_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE",
    "OPENBLAS_CORETYPE",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_VENDOR = re.compile(r"^(?:vendor_id|CPU implementer)\s*:\s*(.*)$", re.MULTILINE)
_FLAGS = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)
_VECTOR = re.compile(r"avx|fma|f16c|amx|asimd|sve|bf16|i8mm")  # what the libraries look for
_SHOWN = 3


def cpu_kernels() -> dict[str, str]:
    """Vendor, vector instructions and the variables that are set, as text by name."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    vendor, flags = _VENDOR.search(text), _FLAGS.search(text)
    instructions = sorted(flag for flag in flags[1].split() if _VECTOR.match(flag)) if flags else []
    return {
        "vendor": vendor[1] if vendor else platform.processor(),
        "instructions": " ".join(instructions),
        **{name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    }


def other_kernels(there: dict[str, str] | None, here: dict[str, str]) -> str | None:
    """How the CPU kernels of a stage differ from those of here; None if they do not.

    `there`: of the stage's manifest; None if it was made with several, or before they were recorded.
    """
    if there is None:
        return "made with several kinds of CPU kernels, or before manifests recorded them"
    if there == here:
        return None
    told = []
    for name in sorted(there.keys() | here.keys()):
        was, now = there.get(name, ""), here.get(name, "")
        if name == "instructions":
            told += _only("there only", was, now) + _only("here only", now, was)
        elif was != now:
            told.append(f"{name} {was or 'not set'} there, {now or 'not set'} here")
    return f"made with other CPU kernels ({'; '.join(told)})"


def _only(where: str, some: str, others: str) -> list[str]:
    names = sorted(set(some.split()) - set(others.split()))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{where}: {', '.join(names[:_SHOWN])}{more}"] if names else []
