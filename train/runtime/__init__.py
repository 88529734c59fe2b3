"""What a training process needs and no result depends on: ranks, heartbeats, signals, checkpoints, metrics.

A run that is killed and resumed must end with the same weights as one that was not.
"""
