"""Checkpoints in, numbers out: generation, scoring, transfer index, report."""
