"""A run: the checks before it, its actors, the loop over its steps, and its end."""
