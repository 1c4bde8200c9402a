"""The comparison of vLLM's wheels, on two small ones."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.places import ROOT
from tests.support.wheels import Difference, differences, download, main

SAME = {"vllm/__init__.py": "same", "vllm/_C.so": "for CPUs", "vllm/_version.py": "1+cpu", "vllm/platforms/cpu.py": "a"}


def wheel(path: Path, **changes: str | None) -> Path:
    """A wheel with the files of `SAME` and changes; None removes a file. `__` in a name is a slash."""
    files = {**SAME, **{name.replace("__", "/") + ".py": text for name, text in changes.items()}}
    with ZipFile(path, "w") as archive:
        for name, text in files.items():
            if text is not None:
                archive.writestr(name, text)
    return path


def test_expected_differences_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = wheel(tmp_path / "cpu.whl", vllm__third_party__one="a")
    gpu = wheel(tmp_path / "gpu.whl", vllm___version="1", vllm__platforms__cpu="b", vllm__vllm_flash_attn__x="new")
    assert differences(cpu, gpu) == [
        Difference("vllm/_version.py", "differs"),
        Difference("vllm/platforms/cpu.py", "differs"),
        Difference("vllm/third_party/one.py", "only CPU"),
        Difference("vllm/vllm_flash_attn/x.py", "only GPU"),
    ]
    assert main([str(cpu), str(gpu)]) == 0
    assert capsys.readouterr().out == "4 Python files differ, 0 of them unexpectedly\n"


def test_each_unexpected_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = wheel(tmp_path / "cpu.whl", vllm__a="1", vllm__b="1")
    gpu = wheel(tmp_path / "gpu.whl", vllm__a="2", vllm__c="1", vllm___version="2")
    assert main([str(cpu), str(gpu)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "differs: vllm/a.py",
        "only CPU: vllm/b.py",
        "only GPU: vllm/c.py",
        "4 Python files differ, 3 of them unexpectedly",
    ]


def test_nothing_is_downloaded_into_the_repository() -> None:
    with pytest.raises(ValueError, match="is in the repository; give a folder outside of it"):
        download(ROOT / "wheels")


def test_one_wheel_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cpu.whl"])
    assert "give two wheels, or --download FOLDER" in capsys.readouterr().err
