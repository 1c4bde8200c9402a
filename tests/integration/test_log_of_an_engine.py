"""vLLM's messages of level INFO are in the file, and those of level ERROR in the terminal, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from adagrpo_ray.rollout.engine_log import logging_to
with logging_to(Path(sys.argv[1])) as config:
    from vllm.logger import configure_logging, init_logger
    configure_logging(config)
init_logger("vllm.v1.engine").info("KV cache size: %s tokens", "1,024")
init_logger("vllm.v1.engine").error("the engine died")
"""


def test_levels_of_the_file_and_of_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "run" / "vllm" / "rollout-actor-0.log"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", CODE, str(log)]
    for _ in range(2):
        terminal = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "the engine died" in terminal
        assert "KV cache size" not in terminal
    lines = log.read_text().splitlines()
    assert sum("INFO" in line and line.endswith("KV cache size: 1,024 tokens") for line in lines) == 2, "it appends"
    assert sum("ERROR" in line and line.endswith("the engine died") for line in lines) == 2
