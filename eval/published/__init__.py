"""The published comparison as data (`paper.yaml`), and what can be recomputed from it."""
