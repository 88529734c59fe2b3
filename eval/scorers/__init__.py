"""Scorers: `rules.py` maps each scoring name of a recipe to one pure function of a response and a reference.

One module per kind of answer. Model-written programs run in `sandbox.py` and nowhere else.
A new rule needs an entry in `RULES`, and in `Scoring` and `TRAITS` (recipes/suite_schema.py); existing rules must keep
their scores.
"""
