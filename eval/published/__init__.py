"""The published scores as data (`paper.yaml`), what can be recomputed from them, how a report compares with them."""
