"""All settings: their sections and tree, reading them (`reading`) and listing them (`listing`)."""

from adagrpo_ray.config.tree import Config

__all__ = ["Config"]
