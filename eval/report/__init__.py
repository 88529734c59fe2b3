"""From scores and manifests to conclusions: transfer.json, the page, summary, figures, and decisions that read them.

`build.py` is the stage, `results.py` computes everything once, `schema.py` types it; the other modules only show or
judge what was computed. In Python: `from eval.report import read_transfer`.
"""

from eval.report.schema import Transfer, read_transfer

__all__ = ["Transfer", "read_transfer"]
