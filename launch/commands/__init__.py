"""The `transfer` command, one module per group of subcommands. A subcommand is a function under `@command`.

Only the entry point imports this package. Subcommands import what they need when they run, so that `--help` stays
instant.
"""
