"""Running stages on this machine: worker processes, ranks of a training stage, GPUs, failures, status."""
