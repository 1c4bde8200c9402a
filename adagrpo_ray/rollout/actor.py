"""The Ray actor around one vLLM engine."""

from __future__ import annotations

import asyncio

import ray

from adagrpo_ray.cluster.children import ChildGuard
from adagrpo_ray.cluster.network import use_node_address
from adagrpo_ray.config.tree import Config
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rollout.engine import RolloutEngine, SyncReceipt
from adagrpo_ray.rollout.gauges import RolloutGauges
from adagrpo_ray.types import Completion, GenerationRequest

SHOW_INTERVAL_S = 1.0


class RolloutActor:
    """One vLLM engine. All methods are asynchronous, so that requests join the engine's running batch."""

    async def node(self) -> str:
        """The id of the node that Ray found for it."""
        return str(ray.get_runtime_context().get_node_id())

    async def start(self, model: ModelFiles, max_model_len: int, config: Config, name: str = "rollout actor") -> None:
        """Load the engine and warm it up. Ray's metrics have it under `name`."""
        use_node_address()
        self._guard = ChildGuard()  # first, since this process may be killed while the engine's starts
        self._engine = await RolloutEngine.start(model.here(), max_model_len, config, model.template)
        self._showing = asyncio.create_task(self._show(RolloutGauges(config.run.name), name))
        await self._engine.warm_up()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """The request's n completions."""
        return await self._engine.generate(request)

    async def apply(self, weights: AdapterWeights) -> SyncReceipt:
        """Put a LoRA version into effect; Ray hands over the object that `weights` refers to."""
        return await self._engine.apply(weights)

    async def sleep(self) -> None:
        """Leave the GPU until `wake`."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Be ready for `apply`, and after it for requests."""
        await self._engine.wake()

    async def stop(self) -> None:
        """End the engine's processes."""
        self._showing.cancel()
        await self._engine.stop()
        self._guard.dismiss()

    async def _show(self, gauges: RolloutGauges, name: str) -> None:
        """Show once a second how much the engine has to do."""
        while True:
            gauges.show(name, self._engine.load)
            await asyncio.sleep(SHOW_INTERVAL_S)
