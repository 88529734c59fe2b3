"""What a run was given and what it cost: the ledger, lineage of problems, FLOPs and memory, and the matching gate.

Needs no torch, so that plans and reports can read it.
"""
