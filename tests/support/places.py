"""Paths in the checkout, independent of the current folder."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "launch" / "configs"
TINY = str(CONFIGS / "tiny-cpu.yaml")
