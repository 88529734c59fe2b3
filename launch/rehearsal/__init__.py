"""`transfer rehearse`: a recipe's own stages with its own engines at toy size, before it costs anything.

`scale.py` scales the recipe; `hardware.py` says what this machine cannot rehearse; `rows.py`, `synthetic.py`,
`toy_model.py` and `teacher.py` make the data, models and teacher that the scaled recipe reads; `run.py` runs it;
`outcome.py` reports. Outside this package only the reports know that a study is a rehearsal: they are marked.
"""
