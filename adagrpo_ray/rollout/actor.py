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
from adagrpo_ray.rollout.engine_log import EngineLog
from adagrpo_ray.rollout.gauges import RolloutGauges
from adagrpo_ray.types import Completion, GenerationRequest

SHOW_INTERVAL_S = 1.0


class RolloutActor:
    """One vLLM engine. All methods are asynchronous, so that new requests join the engine's running batch."""

    async def node(self) -> str:
        """The id of the node that Ray placed the actor on."""
        return str(ray.get_runtime_context().get_node_id())

    async def start(
        self,
        model: ModelFiles,
        max_model_len: int,
        config: Config,
        name: str = "rollout actor",
        home: str | None = None,
    ) -> None:
        """Load the engine and warm it up.

        `name` is its label in Ray's metrics, and `home` the run folder for its log, if there is one.
        """
        use_node_address()
        self._guard = ChildGuard()  # first, since this process may be killed while that of the engine starts
        log = None if home is None else EngineLog(home, name)
        self._engine = await RolloutEngine.start(model.here(), max_model_len, config, model.template, log)
        self._showing = asyncio.create_task(self._show(RolloutGauges(config.run.name), name))
        await self._engine.warm_up()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate the n completions of the request."""
        return await self._engine.generate(request)

    async def apply(self, weights: AdapterWeights) -> SyncReceipt:
        """Apply a version of the adapter. The caller passes a reference, which Ray resolves to `weights`."""
        return await self._engine.apply(weights)

    async def sleep(self) -> None:
        """Release the memory of the GPU until `wake`."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take the memory of the GPU again; the actor then needs `apply` before it serves requests."""
        await self._engine.wake()

    async def stop(self) -> None:
        """End the engine's processes."""
        self._showing.cancel()
        await self._engine.stop()
        self._guard.dismiss()

    async def _show(self, gauges: RolloutGauges, name: str) -> None:
        """Report the load of the engine once a second."""
        while True:
            gauges.show(name, self._engine.load)
            await asyncio.sleep(SHOW_INTERVAL_S)
