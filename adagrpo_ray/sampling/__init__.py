"""Sampling of groups over two callables, generate and score; the training batch; held-out evaluation."""
