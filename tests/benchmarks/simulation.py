"""Simulates how a run scales to 256 rollout actors, from constants measured on this machine.

    python tests/benchmarks/simulation.py [--decode-ms MS --learner-tokens-per-s N --adapter-mb MB] [key=value ...]

constants.py measures the real parts, one of each. A discrete-event simulation combines many of them: strong scaling (a
step of 512 groups of 8 on more and more actors) and weak scaling (64 completions for each actor), with rollouts that
wait for training and with rollouts one step ahead. It prints tables and writes runs/bench/simulation.json; `--from`
this file repeats the simulation without measuring. The effect of GPUs is not measured: it is assumed by the options
under ASSUMED, and without them there is no table of it.

Simplifications: every completion is trained on, in one attempt, with an independently sampled length. Nothing fails.
Learner ranks share the tokens of a step evenly, and their communication takes no time. The training of rank 0 does not
slow down its sampling thread. Training waits for every sync, as it does on-policy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from simulated_parts import Constants, Engine, Loop, Request, Servers

from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.rollout.member import sequences_in_flight

ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GROUP_SIZE, STRONG_PROMPTS, WEAK_PROMPTS = 8, 512, 8  # groups of a step in total, or for each actor
OUT = Path("runs/bench/simulation.json")


@dataclass(frozen=True)
class Point:
    """Means of a simulated step, in seconds, unless noted.

    actors: the number of actors.
    tokens: tokens of the step.
    wait, learner, sync: the parts of `seconds`.

    The others are the times in which a resource is busy; they overlap:
    controller: rank 0's thread, without its work for sync.
    rewards: each scoring process.
    decoding: each actor, if all completions were equally long and evenly distributed.
    tail: additional time of decoding, without that in which the controller keeps it waiting.
    """

    actors: int
    tokens: float
    seconds: float
    wait: float
    learner: float
    sync: float
    controller: float
    rewards: float
    decoding: float
    tail: float

    @property
    def limit(self) -> str:
        """The busiest part."""
        parts = ("controller", "rewards", "sync", "learner", "decoding", "tail")
        return max(parts, key=lambda part: float(getattr(self, part)))


class _Run:
    """The steps of a run, and their times so far."""

    def __init__(
        self, constants: Constants, actors: int, ranks: int, ahead: int, draw: Callable[[int], list[Request]]
    ) -> None:
        self._c, self._ranks, self._ahead, self._draw = constants, ranks, ahead, draw
        self.loop = loop = Loop()
        self._controller, self._rewards = Servers(loop), Servers(loop, constants.reward_workers)
        self._engines = [Engine(loop, constants, self._answer, self._decoding) for _ in range(actors)]
        self._outstanding = [0] * actors  # completions, since all have the same upper bound of tokens
        self._limit = sequences_in_flight(RolloutSettings(max_num_seqs=constants.max_sequences))
        self._queue: deque[Request] = deque()
        self._open: dict[int, int] = {}  # step -> number of its unfinished groups
        self.requests: dict[int, list[Request]] = {}
        self._ready: set[int] = set()
        self._unproved = 0  # actors that have not applied the newest version
        self.version, self._training, self._began = 0, False, 0.0
        self._decoders, self._since = 0, 0.0
        self._wait = self._learner = self._sync = self._decoded = 0.0
        self.totals: list[tuple[float, ...]] = [(0.0,) * 7]  # for each version, the times of all steps up to it
        for step in range(1, ahead + 2):
            self._begin(step)

    def _begin(self, step: int) -> None:
        self.requests[step] = requests = self._draw(step)
        self._open[step] = len(requests)
        for request in requests:
            self._controller.do(self._c.request_seconds, partial(self._dispatch, request))

    def _dispatch(self, request: Request) -> None:
        self._queue.append(request)
        self._route()

    def _route(self) -> None:
        """Send requests to the actor with the fewest outstanding completions while it has room, as the pool does."""
        while self._queue:
            actor = min(range(len(self._engines)), key=self._outstanding.__getitem__)
            if self._outstanding[actor] >= self._limit:
                return
            request = self._queue.popleft()
            request.actor = actor
            self._outstanding[actor] += len(request.lengths)
            self.loop.at(self.loop.now + self._c.call_seconds / 2, partial(self._engines[actor].add, request))

    def _answer(self, request: Request) -> None:
        self._controller.do(self._c.completion_seconds * len(request.lengths), partial(self._take, request))

    def _take(self, request: Request) -> None:
        self._outstanding[request.actor] -= len(request.lengths)
        self._route()
        self._rewards.do(self._c.reward_seconds, partial(self._end, request))

    def _end(self, request: Request) -> None:
        self._open[request.step] = left = self._open[request.step] - 1
        if left:
            self._controller.do(self._c.pending_seconds * left)
        else:
            completions = sum(len(r.lengths) for r in self.requests[request.step])
            self._controller.do(self._c.batch_seconds * completions, partial(self._batch, request.step))

    def _batch(self, step: int) -> None:
        self._ready.add(step)
        self._train()

    def _train(self) -> None:
        """Train the next step, if its batch is ready and the step before has ended."""
        step = self.version + 1
        if self._training or step not in self._ready:
            return
        self._training = True
        tokens = sum(sum(r.lengths) for r in self.requests[step])
        seconds = self._c.learner_seconds_per_token * tokens / self._ranks
        self._wait += self.loop.now - self._began
        self._learner += seconds
        self.loop.at(self.loop.now + seconds, self._pack)

    def _pack(self) -> None:
        self._began = self.loop.now
        c = self._c
        per_byte = c.pack_seconds_per_byte + c.put_seconds_per_byte
        seconds = c.pack_seconds + c.put_seconds + per_byte * c.adapter_bytes
        self._controller.do(seconds, self._send, counted=False)

    def _send(self) -> None:
        """Send one object: its reference to each actor, and its bytes to each node, one after the other."""
        c, now = self._c, self.loop.now
        self._unproved = len(self._engines)
        for index, engine in enumerate(self._engines):
            arrival = now + index // c.actors_per_node * c.network_seconds_per_byte * c.adapter_bytes
            self._controller.do(c.dispatch_seconds, partial(self._deliver, engine, arrival), counted=False)

    def _deliver(self, engine: Engine, arrival: float) -> None:
        self.loop.at(max(self.loop.now + self._c.call_seconds / 2, arrival), partial(engine.pause, self._prove))

    def _prove(self) -> None:
        self._unproved -= 1
        if self._unproved:
            return
        self._sync += self.loop.now - self._began
        self.version, self._training, self._began = self.version + 1, False, self.loop.now
        decoded = self._decoded + (self.loop.now - self._since if self._decoders else 0.0)
        used = (self._controller.busy, self._rewards.busy, decoded)
        self.totals.append((self.loop.now, self._wait, self._learner, self._sync, *used))
        self._begin(self.version + 1 + self._ahead)
        self._train()

    def _decoding(self, change: int) -> None:
        """Called when an engine begins (1) or stops (-1) to decode."""
        if not self._decoders:
            self._since = self.loop.now
        self._decoders += change
        if not self._decoders:
            self._decoded += self.loop.now - self._since


def simulate(
    constants: Constants,
    lengths: Sequence[int],
    actors: int,
    *,
    prompts: int,
    group_size: int,
    prompt_lengths: Sequence[int] = (0,),
    max_staleness: int = 0,
    ranks: int = 1,
    steps: int = 4,
    warm_up: int = 2,
    seed: int = 0,
) -> Point:
    """Simulate a run; means over `steps` steps after `warm_up` others, of `prompts` groups of `group_size` completions.

    Lengths of completions and prompts are sampled from `lengths` and `prompt_lengths` by `seed` and step, independent
    of the number of actors. The rollouts of step k begin when version k - 1 - `max_staleness` is applied.
    """

    def draw(step: int) -> list[Request]:
        rng = random.Random(f"{seed}/{step}")
        return [
            Request(step, rng.choice(prompt_lengths), rng.choices(lengths, k=group_size), group_size)
            for _ in range(prompts)
        ]

    run = _Run(constants, actors, ranks, max_staleness, draw)
    run.loop.run(lambda: run.version == warm_up + steps)
    means = [(end - begin) / steps for begin, end in zip(run.totals[warm_up], run.totals[-1], strict=True)]
    seconds, wait, learner, sync, controller, rewards, decoded = means
    seen = [request for step in range(warm_up + 1, warm_up + steps + 1) for request in run.requests[step]]
    tokens = sum(sum(r.lengths) for r in seen) / steps
    used = min(actors, prompts)
    together = min(constants.max_sequences, prompts * group_size / used)
    each = constants.decode_seconds / together + constants.decode_seconds_per_sequence
    prefill = constants.prefill_seconds_per_token * sum(r.prompt for r in seen) / steps
    decoding = min(decoded, (tokens * each + prefill) / used)
    tail = max(0.0, decoded - max(decoding, controller))
    return Point(
        actors, tokens, seconds, wait, learner, sync, controller, rewards / constants.reward_workers, decoding, tail
    )


def report(
    constants: Constants, lengths: Sequence[int], prompt_lengths: Sequence[int] = (0,), actors_per_rank: int = 0
) -> list[dict[str, Any]]:
    """Print a table for each kind of scaling; one row for each point, with all its metrics.

    There is one learner rank, or one for each `actors_per_rank` actors. Efficiency is tokens per second and actor,
    relative to those of one actor.
    """
    rows: list[dict[str, Any]] = []
    for scaling, ahead in product(("strong", "weak"), (0, 1)):
        ranks_are = f"one for {actors_per_rank} actor(s)" if actors_per_rank else "one"
        print(f"\n{scaling} scaling, max_staleness {ahead}, learner ranks: {ranks_are}")
        print("actors  step s       tokens/s  efficiency  controller  sync   limit")
        alone = 0.0
        for actors in ACTORS:
            prompts = STRONG_PROMPTS if scaling == "strong" else WEAK_PROMPTS * actors
            ranks = max(1, actors // actors_per_rank) if actors_per_rank else 1
            setting = {"prompts": prompts, "max_staleness": ahead, "ranks": ranks}
            point = simulate(
                constants, lengths, actors, group_size=GROUP_SIZE, prompt_lengths=prompt_lengths, **setting
            )
            speed = point.tokens / point.seconds
            alone = alone or speed
            print(
                f"{actors:6} {point.seconds:7.3f} {speed:14,.0f} {speed / alone / actors:11.0%} "
                f"{point.controller / point.seconds:11.0%} {point.sync / point.seconds:5.0%}   {point.limit}"
            )
            metrics = {"tokens_per_s": speed, "efficiency": speed / alone / actors, "limit": point.limit}
            rows.append({"scaling": scaling, **setting, **asdict(point), **metrics})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--config", default="launch/configs/tiny-cpu.yaml", help="YAML file (default: tiny-cpu.yaml)")
    parser.add_argument("--from", dest="saved", type=Path, help="use the constants in this file, without measuring")
    assumed = parser.add_argument_group("ASSUMED, not measured; the first three belong together")
    assumed.add_argument("--decode-ms", type=float, help="time of an engine iteration, for any number of sequences")
    assumed.add_argument("--learner-tokens-per-s", type=float, help="rate of one rank")
    assumed.add_argument("--adapter-mb", type=float, help="megabytes of an adapter")
    assumed.add_argument("--length-factor", type=float, default=1.0, help="factor of the measured completion lengths")
    assumed.add_argument("--network-gb-per-s", type=float, help="from rank 0's node to others; default: one node")
    assumed.add_argument("--actors-per-node", type=int, default=8, help="has an effect only with a network")
    args = parser.parse_args()
    given = (args.decode_ms, args.learner_tokens_per_s, args.adapter_mb)
    if any(given) and not all(given):
        parser.error("give --decode-ms, --learner-tokens-per-s and --adapter-mb together")
    if args.saved is None:
        from constants import measure

        from adagrpo_ray.config import Config
        from adagrpo_ray.training.preflight import check

        config = Config.load(args.config, ["algorithm.triggers=[]", *args.settings])
        constants, lengths, prompt_lengths = measure(config, check(config))
    else:
        saved = json.loads(args.saved.read_text())
        constants = Constants(**saved["constants"])
        lengths, prompt_lengths = saved["lengths"], saved["prompt_lengths"]
    out: dict[str, Any] = {"cpus": os.cpu_count(), "constants": asdict(constants), "lengths": lengths}
    out["prompt_lengths"] = prompt_lengths
    print("Measured on this machine:")
    for name, value in asdict(constants).items():
        print(f"  {name:32} {value:.4g}")
    like = simulate(constants, lengths, 1, prompts=16, group_size=4, prompt_lengths=prompt_lengths)
    print(f"A step of make bench (16 groups of 4, 1 actor) would be {like.tokens / like.seconds:,.0f} tokens/s")
    out["measured"] = [*report(constants, lengths, prompt_lengths), *report(constants, lengths, prompt_lengths, 1)]
    if all(given):
        gpu = replace(
            constants,
            decode_seconds=args.decode_ms / 1e3,
            decode_seconds_per_sequence=0.0,
            prefill_seconds_per_token=0.0,
            learner_seconds_per_token=1 / args.learner_tokens_per_s,
            adapter_bytes=round(args.adapter_mb * 1e6),
            network_seconds_per_byte=1e-9 / args.network_gb_per_s if args.network_gb_per_s else 0.0,
            actors_per_node=args.actors_per_node,
        )
        longer = [max(1, round(length * args.length_factor)) for length in lengths]
        out["assumed"] = {name: value for name, value in vars(args).items() if name not in ("settings", "saved")}
        print(f"\nWHAT IF, ASSUMED and not measured: {out['assumed']}; no prefill; all else as measured")
        out["what_if"] = [*report(gpu, longer, prompt_lengths), *report(gpu, longer, prompt_lengths, 1)]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
