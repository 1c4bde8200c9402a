"""Floor 0: the algorithm, in pure Python and torch. Imports no engine and no Ray."""
