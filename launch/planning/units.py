"""Hours and FLOPs as text."""


def hours_text(hours: float) -> str:
    """Hours in a readable unit."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1 / 30:
        return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
    seconds = hours * 3600
    return f"{seconds:.0f} s" if seconds >= 9.95 or not seconds else f"{seconds:.1f} s"


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
