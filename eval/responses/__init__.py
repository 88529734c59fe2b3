"""From questions and a checkpoint to stored responses and scores.

`generate.py` is the stage, `harness.py` the border to lm-evaluation-harness, `engines.py` that to transformers, vLLM
and servers; `readings.py` turns stored scores into arrays.
"""
