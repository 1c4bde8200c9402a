"""The algorithm in pure Python and torch, without an engine or Ray."""
