"""The `transfer` command: parsers and handlers, one module per group of subcommands. `main.py` is the entrance.

Nothing else of the project imports this package. Handlers import what they need when they are called, so that `--help`
stays instant.
"""
