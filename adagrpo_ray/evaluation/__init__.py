"""Evaluating the base model and adapters side by side, apart from training.

`models` finds what is to be evaluated, `settings` says what must stay the same, `results` keeps a line a finished
problem, `measure` makes them over rollout actors, and `comparison` and `table` compare them.
"""
