"""Rollouts: the vLLM engine, the Ray actor around it, the router of requests, and the fleet of actors."""
