"""The reply of a learner rank to a collected step: a batch for each rank, metrics, and some groups to show."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.packing import computed_tokens, groups_with_advantage, pack_batches
from adagrpo_ray.learner.replies import Collected
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.sampling.batch import broken_samples, training_samples
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.sampling.sample_table import group_samples


def collected(
    step: int,
    collection: Collection,
    config: Config,
    method: Method,
    packing: Packing,
    *,
    rollout_actors: int,
    rollout_restarts: int,
    consumption: Mapping[str, Consumption],
    notices: tuple[str, ...],
) -> Collected:
    """Make the reply from the groups of a step; the batches go into the object store. See `Collected` for the rest."""
    functions, dropped = config.rewards.names, method.drop_exhausted
    groups = [*collection.ready, *(() if dropped else collection.exhausted)]
    samples = training_samples(groups, config.algorithm, config.rollout.max_new_tokens, collection.left_out)
    # A broken one comes first, and so into the first mini-batch: no update is made on the others.
    samples = (*broken_samples(collection.attempts), *samples)
    learner, parts = config.learner, config.algorithm.mini_batches_of(groups_with_advantage(samples))
    passes = config.algorithm.passes_over(*computed_tokens(samples, packing))
    batches = pack_batches(step, samples, learner.ranks, learner.micro_batch_tokens, packing, parts, passes)
    shown = config.run.samples_per_step
    metrics = sampling_metrics(
        step,
        collection,
        functions,
        method.ladder.height,
        config.algorithm,
        exhausted_dropped=dropped,
        consumption=consumption,
    )
    return Collected(
        batches=tuple(ray.put(batch) for batch in batches),
        trained_tokens=sum(s.policy_tokens for s in samples),
        passes=passes,
        metrics=metrics,
        groups=group_samples(step, collection, functions, config.algorithm, shown, exhausted_dropped=dropped),
        rollout_actors=rollout_actors,
        rollout_restarts=rollout_restarts,
        notices=notices,
    )
