"""Model directories: how a base or an external checkpoint becomes one, and how final weights are written.

safetensors only; tokenizer, template and end-of-turn tokens are settled here once.
"""
