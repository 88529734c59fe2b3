"""What a recipe will need and what stands in its way, found before anything is spent. Needs no torch."""
