"""Training. The experiment: arms, weights, rewards, rollouts, sft, grpo, weighted_grpo, and `run`, which they share.
`runtime/` (ranks, signals, checkpoints, metrics), `accounting/` (ledger, matching, cost) and `models/` (model
directories) support it. Edits to the experiment change results. `drift` measures the distance from the base.
"""
