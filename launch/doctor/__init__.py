"""`transfer doctor`: checks of a machine, each the real thing in miniature in a process of its own."""
