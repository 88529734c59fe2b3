"""What every model is asked: rows of a benchmark become questions once, before any model is loaded.

`build.py` is the stage, `forms.py` has one function for each form of row, `analysis_lock.py` fixes the analysis.
"""
