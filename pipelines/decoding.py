"""Whether samples decode under a kind's caps, asked before a run instead of during it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from uml_core.errors import UserError, near
from uml_core.modalities import KINDS, BadSample


def kind_options(kind: str, pairs: Sequence[str]) -> Any:
    """The Options of a kind with `field=value` pairs set. Raises UserError with every problem."""
    known = {f.name for f in dataclasses.fields(KINDS[kind].Options)}
    body, problems = {}, []
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in known:
            hint = near(name, known) if separator else ": write field=value"
            problems.append(f"--set {pair}: kind {kind} has no such field{hint}")
        else:
            body[name] = yaml.safe_load(text)
    try:
        options: Any = TypeAdapter(KINDS[kind].Options).validate_python(body)
    except ValidationError as error:
        problems += [f"--set {e['loc'][0]}: {e['msg'].lower()}" for e in error.errors()]
    if problems:
        raise UserError(problems)
    return options


class Decoder:
    """Decodes samples of one kind and says what is wrong with those that do not."""

    def __init__(self, kind: str, options: Any) -> None:
        self._modality = KINDS[kind](options)
        self._sized = False

    @property
    def dim(self) -> int | None:
        """Numbers per sample or step as the first good sample had them; None for other kinds."""
        return getattr(self._modality.options, "dim", None)

    def cause(self, data: bytes, suffix: str) -> str | None:
        """Why this sample cannot be used, None when it can."""
        if not data:
            return "it is empty"
        try:
            item = self._modality.decode(data, suffix)
            if not self._sized:  # later samples must have the size of the first
                self._modality, self._sized = self._modality.with_input(item), True
        except (BadSample, UserError) as error:
            return str(error)
        return None
