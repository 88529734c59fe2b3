"""How a tuned model differs from its base inside: PCA shift of hidden states and token shift, per final checkpoint.

`diagnostics.py` is the stage; the measures are in `pca_shift.py` and `token_shift.py`; `summary.py` puts them together.
"""
