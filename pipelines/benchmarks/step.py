"""Suite `step`: the training step against a plain PyTorch script (uml_core/benchmarks/step.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml_core.benchmarks.step import measure

__all__ = ["measure", "rows"]

# name: (must, aim)
BOUNDS: dict[str, tuple[str, str]] = {
    "a": ("≤ 1.05", "1.0"),
    "b": ("≤ 0.80", ""),
    "b_compiled": ("≤ 0.80", ""),
    "gpu_a": ("≤ 0.50", ""),
    "gpu_b": ("≤ 0.50", ""),
}


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """(figure, value, must, aim) for the terminal."""
    ratios = result["step_vs_plain"]
    found = [[f"step {n} / plain", _text(ratios[n]), *bounds] for n, bounds in BOUNDS.items()]
    return [*found, ["ViT-B trunk, bf16: MFU", _text(result["mfu"]), "≥ 0.45", ""]]


def _text(value: float | None) -> str:
    return "not measured here" if value is None else f"{value:.2f}"
