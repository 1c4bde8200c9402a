"""All settings: their sections and tree, reading them (`reading`) and listing them (`listing`)."""

from adagrpo_ray.config.tree import Config

load_config = Config.load
"""The name in the model cards of earlier versions."""

__all__ = ["Config", "load_config"]
