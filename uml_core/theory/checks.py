"""All checks of the theory in the order in which they are reported."""

from __future__ import annotations

import numpy as np

from uml_core.theory.counterexamples import COUNTEREXAMPLES
from uml_core.theory.instances import Check
from uml_core.theory.measured import MEASURED
from uml_core.theory.statements import STATEMENTS

INSTANCES = 500


def run_checks(seed: int = 0, instances: int = INSTANCES) -> list[Check]:
    """Evaluate every statement and counter-example on ``instances`` random problems per size.

    Each check has its own random stream, so that adding one does not change the others.
    """
    checks = (*STATEMENTS, *MEASURED, *COUNTEREXAMPLES)
    streams = np.random.default_rng(seed).spawn(len(checks))
    return [check(stream, instances) for check, stream in zip(checks, streams, strict=True)]
