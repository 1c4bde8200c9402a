"""The LoRA adapter: its payload on the way to the rollout actors, and reading one from a folder."""
