"""From scores and manifests to conclusions: transfer.json, the page, summary, figures, and decisions that read them.

`build.py` is the stage, `results.py` computes everything once; the other modules only show or judge what it computed.
"""
