"""What a test needs and this machine lacks: a reason to skip, or where it is promised to fail."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """Skips the test; fails it with UML_HOSTS=required (CI), where a skip would pass for a test."""
    if os.environ.get("UML_HOSTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
