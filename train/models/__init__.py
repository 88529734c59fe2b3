"""Model directories: preparing a base or an external checkpoint, and writing final weights.

safetensors only. Tokenizer, chat template and end-of-turn tokens are set here once for all stages.
"""
