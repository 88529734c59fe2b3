"""`transfer rehearse`: a recipe's own stages with its own engines at toy size, before it costs anything.

`scale.py` is the one place that says what is scaled; `hardware.py` what this machine cannot show; `rows.py`,
`synthetic.py`, `toy_model.py` and `teacher.py` make what the scaled recipe reads; `run.py` runs it; `outcome.py` says
what came of it. Nothing outside this package behaves differently in a rehearsal, but for the mark on every report.
"""
