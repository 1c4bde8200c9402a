"""Rollouts: the vLLM engine, the Ray actor around it, the pool that routes requests, and the fleet of actors."""
