"""Fixtures of the tests of sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.tuning.trial import Trial


def build(key: str, **changes: Any) -> Trial:
    plain = {
        "key": key,
        "arm": "uml",
        "values": {"ratio": 2.0},
        "settings": {"modalities.text.ratio": 2.0},
        "seeds": [0, 1],
        "steps": 10,
        "target_samples": 80,
        "flops": 1e9,
    }
    return Trial(**{**plain, **changes})


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """A trial by its key; any field can be given."""
    return build
