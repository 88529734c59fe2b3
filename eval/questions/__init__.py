"""Questions: published rows become `Question` records once, before any model is loaded.

`build.py` is the stage, `forms.py` parses one row format per function, `analysis_lock.py` fixes the analysis.
A new row format is one function and one entry of `FORMS`; changing an existing one changes stored question ids.
"""
