"""Problems in, checked rows out: the one prompt renderer and the one grader live here."""
