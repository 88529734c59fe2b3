"""Completions written before training, by a server or a local model, and the store that keeps every one of them.

The store is keyed by the sampling configuration; a key that leaves something out would reuse wrong samples.
"""
