"""The kinds of data. A new kind is one file with one subclass of `Modality`, listed here."""

from __future__ import annotations

from uml_core.modalities.audio import Audio
from uml_core.modalities.base import BadSample, Batch, Modality
from uml_core.modalities.image import Image
from uml_core.modalities.sequence import Sequence
from uml_core.modalities.text import Text
from uml_core.modalities.vector import Vector

KINDS: dict[str, type[Modality]] = {cls.kind: cls for cls in (Image, Text, Audio, Sequence, Vector)}

__all__ = ["KINDS", "BadSample", "Batch", "Modality"]
