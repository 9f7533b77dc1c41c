"""Whether samples decode under a kind's caps, asked before a run instead of during it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.streams import foreign
from uml_core.errors import UserError
from uml_core.modalities import KINDS, BadSample
from uml_core.typed import build, read_yaml


def kind_options(kind: str, pairs: Sequence[str]) -> Any:
    """The Options of a kind with `field=value` pairs set. Raises UserError with every problem."""
    body: dict[str, Any] = {}
    problems: list[str] = []
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            if not separator:
                raise ValueError("write field=value")
            body[name] = read_yaml(text)
        except ValueError as error:
            problems.append(f"--set {pair}: {error}")
    options = build(KINDS[kind].Options, body, "--set", problems)
    if problems:
        raise UserError(problems)
    return options


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON takes them; `Decoder` takes them back."""
    fields = dataclasses.asdict(options)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


class Decoder:
    """Decodes samples of one kind and says what is wrong with those that do not.

    fields: the kind's Options as `plain` makes them.
    """

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._modality = KINDS[kind](build(KINDS[kind].Options, fields, kind, []))
        self._sized = False
        self._ends: list[np.ndarray] = []
        if self._modality.partial and self._modality.options.augment != "none":
            # Whatever is drawn in training lies between these parts of a sample.
            self._ends = [np.full(self._modality.num_random, end) for end in (0.0, 1.0)]

    @property
    def dim(self) -> int | None:
        """Numbers per sample or step as the first good sample had them; None for other kinds."""
        return getattr(self._modality.options, "dim", None)

    def cause(self, data: bytes, suffix: str) -> str | None:
        """Why this sample cannot be used, None when it can."""
        if not data:
            return "it is empty"
        if (what := foreign.no_payload(data, suffix)) is not None:
            return what
        try:
            item = self._modality.decode(data, suffix)
            for u in self._ends:
                self._modality.decode(data, suffix, u)
            if not self._sized:  # later samples must have the size of the first
                self._modality, self._sized = self._modality.with_input(item), True
        except (BadSample, UserError) as error:
            return str(error)
        return None
