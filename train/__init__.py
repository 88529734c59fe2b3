"""Rows in, checkpoints out: the base model, the arms of a study, and the ledger of what each one spent."""
