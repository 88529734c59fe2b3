"""What a recipe needs, and what blocks it, before anything is spent. Needs no torch."""
