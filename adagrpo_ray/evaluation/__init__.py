"""Evaluation of the base model and adapters on the same problems, outside of training.

`models` finds the models to evaluate, and `settings` the settings that results depend on. `execution` evaluates the
models on rollout actors, and `results` stores one line for each finished problem. `comparison` computes metrics and
differences, `table` formats them, and `progress_line` shows the progress.
"""
