"""All settings: their sections and tree, reading them (`load`, `reading`) and listing them (`explain`)."""

from adagrpo_ray.config.load import load_config
from adagrpo_ray.config.tree import Config

__all__ = ["Config", "load_config"]
