"""What every training process needs and no result depends on: ranks, heartbeats, signals, checkpoints, metrics.

A run that is killed and resumed must end with the weights of one that was not.
"""
