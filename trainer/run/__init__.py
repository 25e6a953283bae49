"""One training run, from its directory to its last line."""
