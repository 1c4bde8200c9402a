"""Selection of some completions of a group, to train on them alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def max_variance(rewards: Sequence[float], size: int) -> list[int]:
    """Places of the `size` rewards with the largest variance, in ascending order.

    This is max-variance down-sampling (PODS, arXiv 2504.13818). The rewards are the k lowest and the `size` - k highest
    for some k, as the paper proves, so that it is enough to sort them and to look at each k: O(n log n). Of equal
    rewards the first ones are selected. Of values of k with the same variance it is the smallest, which selects most of
    the highest rewards.

    Worked example: of [0, 0, 0, 1, 0, 1] four are selected at the places 0, 1, 3 and 5.
    """
    count = len(rewards)
    if size >= count:
        return list(range(count))
    lowest = sorted(range(count), key=lambda place: rewards[place])
    highest = sorted(range(count), key=lambda place: -rewards[place])
    # Differences to the lowest reward, since a large mean would cancel the variance.
    values = [float(rewards[place]) - float(rewards[lowest[0]]) for place in lowest]
    sums = list(accumulate(values, initial=0.0))
    squares = list(accumulate((value * value for value in values), initial=0.0))
    best, low = -1.0, 0
    for k in range(size + 1):
        high = count - (size - k)  # the highest rewards begin here in `values`
        total = sums[k] + sums[count] - sums[high]
        variance = size * (squares[k] + squares[count] - squares[high]) - total * total  # times size^2
        if variance > best:
            best, low = variance, k
    selected = set(highest[: size - low])
    # The highest ones are selected first, since the same reward may be among the lowest ones too.
    return sorted([*selected, *[place for place in lowest if place not in selected][:low]])


def balanced(correct: Sequence[bool], size: int) -> list[int]:
    """Places of `size` completions: up to half of them correct, then wrong ones, then more correct ones.

    So many failures do not outweigh a few successes (Reinforce-Ada, arXiv 2510.04996, section 3). The first correct
    and the first wrong ones are selected.
    """
    right = [place for place, is_right in enumerate(correct) if is_right]
    wrong = [place for place, is_right in enumerate(correct) if not is_right]
    kept = min(len(right), max(size // 2, size - len(wrong)))
    return [*right[:kept], *wrong[: size - kept]]
