"""How stored responses are judged: `rules.py` maps a recipe's scoring to one pure function of response and reference.

One module per kind of answer. Model-written programs run in `sandbox.py` and nowhere else.
"""
