"""Hours and FLOPs as text."""

from recipes.progress import duration


def hours_text(hours: float) -> str:
    """Hours in a readable unit."""
    return duration(3600 * hours)


def flops_text(flops: float) -> str:
    """FLOPs in the unit that leaves one to three digits before the point."""
    for unit, size in (("EFLOPs", 1e18), ("PFLOPs", 1e15), ("TFLOPs", 1e12)):
        if flops >= size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e9:,.1f} GFLOPs"


def amount_text(hours: float, unit: str) -> str:
    """Hours of all stages together: those of GPUs as a number, others as a duration."""
    return f"{count_text(hours)} {unit}" if unit == "GPU-hours" else f"{hours_text(hours)} of stage time"


def count_text(hours: float) -> str:
    """A number of hours: whole ones from ten on."""
    return f"{hours:,.0f}" if hours >= 10 or not hours else f"{hours:,.2f}"
