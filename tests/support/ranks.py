"""Two processes of a torch.distributed group, started by a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def both(script: Path, folder: Path, seconds: float = 280) -> list[Any]:
    """What `script FOLDER RANK` leaves in rank-RANK.json, for ranks 0 and 1 run side by side."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], env=env) for rank in (0, 1)]
    try:
        assert [rank.wait(timeout=seconds) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
