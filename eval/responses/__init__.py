"""Responses: a checkpoint answers the questions; prompts, responses and scores are stored in chunks.

`generate.py` is the stage, `harness.py` calls lm-evaluation-harness, `engines.py` loads transformers, vLLM or a server.
`readings.py` reads what is stored, `rescore.py` judges it again. Changes to seeds or prompts invalidate it.
"""
