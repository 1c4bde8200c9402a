"""The settings of torch's CUDA allocator in the learner's process; the allocator itself needs a GPU (tests/gpu)."""

from __future__ import annotations

import os

import pytest
import torch

from adagrpo_ray.learner.cuda_memory import CONFIGURED, free_bytes, use_expandable_segments


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings that torch's allocator gets; no variable configures it."""
    settings: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append)
    for name in CONFIGURED:
        monkeypatch.delenv(name, raising=False)
    return settings


def test_expandable_segments_are_set_in_this_process_only(given: list[str]) -> None:
    before = dict(os.environ)
    use_expandable_segments()
    assert given == ["expandable_segments:True"]
    assert dict(os.environ) == before  # children would inherit a variable, and vLLM must not have it


@pytest.mark.parametrize("name", CONFIGURED)
def test_settings_of_the_user_stay(given: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    use_expandable_segments()
    assert given == []


def test_free_bytes_are_unknown_on_cpus() -> None:
    assert free_bytes(torch.device("cpu")) is None


def test_cached_bytes_count_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_bytes(torch.device("cuda")) == 140
