"""Every setting: the tree (`tree`, `algorithm`), how it is read (`load`) and explains itself (`explain`)."""

from adagrpo_ray.config.load import load_config
from adagrpo_ray.config.tree import Config

__all__ = ["Config", "load_config"]
