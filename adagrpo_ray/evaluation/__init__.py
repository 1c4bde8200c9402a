"""Measuring the base model and adapters side by side, apart from training.

`models` finds what is to be measured, `settings` says what must stay the same, `results` keeps a line a finished
problem, `measure` makes them over rollout actors, and `figures` and `table` make the comparison of them.
"""
