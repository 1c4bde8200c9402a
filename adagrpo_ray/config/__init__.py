"""Every setting: the tree and its sections, how it is read (`load`, `reading`) and explains itself (`explain`)."""

from adagrpo_ray.config.load import load_config
from adagrpo_ray.config.tree import Config

__all__ = ["Config", "load_config"]
