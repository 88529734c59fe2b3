"""Representation shift (PCA shift of hidden states) and token shift between a final checkpoint and the base.

`diagnostics.py` is the stage; the measures are in `pca_shift.py` and `token_shift.py`; `summary.py` aggregates them
for the report.
"""
