"""Two processes of a torch.distributed group, started by a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def both(script: Path, folder: Path) -> list[Any]:
    """What `script FOLDER RANK` leaves in rank-RANK.json, for ranks 0 and 1 run side by side."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], env=env) for rank in (0, 1)]
    try:
        # A rank that failed leaves the other one waiting for it.
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(0.05)
        assert codes == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
