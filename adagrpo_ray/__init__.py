"""adagrpo_ray: adaptive GRPO on Ray, with vLLM rollout actors and a DeepSpeed learner."""

__version__ = "0.1.0"
