"""Evaluation of the base model and adapters on the same problems, outside of training.

`models` finds the models to evaluate, `planning` the problems, and `settings` the settings that results depend on.
`execution` evaluates the models on rollout actors, `judge` makes the result of a problem, and `results` stores one line
for each. `comparison` computes metrics and differences, `table` formats them, and `overview` those of several
benchmarks. `progress_line` shows the progress.
"""
