"""URLs and paths."""

from __future__ import annotations

from adagrpo_ray.storage import places as storage


def test_urls_and_paths_are_distinguished() -> None:
    assert storage.is_url("s3://bucket/x")
    assert not storage.is_url("runs/x")
    assert not storage.is_url("file:///mnt/runs")
    assert storage.join("s3://bucket/x/", "a", "b") == "s3://bucket/x/a/b"
    assert storage.join("file:///mnt/my%20runs", "a") == "/mnt/my runs/a"
    assert storage.join("runs", "a") == "runs/a"
