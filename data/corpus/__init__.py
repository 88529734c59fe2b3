"""From source files to the corpus: checked problems, graded demonstrations, and the funnel every row goes through.

`build.py` is the stage and reads in order. A filter's verdict on one row depends on that row, never on its neighbours.
"""
