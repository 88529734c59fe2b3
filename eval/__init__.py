"""Evaluation: from a checkpoint to scores, transfer index and report.

Data flow: `questions/` -> `responses/` (through lm-evaluation-harness) -> `scorers/` -> `statistics/` -> `report/`.
To add a benchmark, add a task file under `tasks/` and an entry in a recipe; both need no code.
"""
