"""Frozen encoders: files and texts -> features. Needs the extra `encoders`."""

from __future__ import annotations

from uml_core.encoders.base import Encoder
from uml_core.encoders.opening import locate, open_encoder

__all__ = ["Encoder", "locate", "open_encoder"]
