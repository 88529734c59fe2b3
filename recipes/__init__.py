"""What to run (typed recipes) and what ran (manifests). Imports nothing else of the project."""
