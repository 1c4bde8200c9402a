"""Floor 2: vLLM rollout engines, the Ray actors around them, and the pool that routes requests."""
