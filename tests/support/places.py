"""Paths in the checkout, independent of the current folder, and the programs of this environment."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "launch" / "configs"
TINY = str(CONFIGS / "tiny-cpu.yaml")
TINY_IN_ROOT = "launch/configs/tiny-cpu.yaml"
"""For programs that run in a checkout or in a copy of it."""
BIN = Path(sys.executable).parent
