"""Every setting of a run: the tree (`tree`), how it is read (`load`) and how it explains itself (`explain`)."""

from adagrpo_ray.config.load import load_config
from adagrpo_ray.config.tree import Config

__all__ = ["Config", "load_config"]
