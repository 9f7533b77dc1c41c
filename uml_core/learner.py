"""UnpairedLearner: stems f_m, one shared trunk h, decoders g_m, one shared classifier c.

The trunk and the classifier are the only coupling between modalities (paper 3.2, Fig 4). Every
part is initialised from its own seed, so two arms of a comparison start from the same target path
whatever other modalities they hold.

Shape legend: B batch, T positions, D width, C classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uml_core.errors import UserError
from uml_core.modalities import Modality
from uml_core.modalities.base import Batch
from uml_core.modalities.common import masked_mean
from uml_core.objectives import (
    next_embedding_sum,
    next_embedding_terms,
    supervised_sum,
    supervised_terms,
)
from uml_core.specs import ModelSpec
from uml_core.trunk import Trunk

T_ = TypeVar("T_", bound=nn.Module)


class UnpairedLearner(nn.Module):
    """One model for several unpaired modalities.

    modalities       name -> Modality (its stem, decoder and loss)
    spec             sizes of the shared parts
    num_classes      C; None in the self-supervised setting
    seed             of the initial weights
    label_smoothing  of the supervised loss
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        spec: ModelSpec,
        *,
        num_classes: int | None,
        seed: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.spec = spec
        self.supervised = num_classes is not None
        self.label_smoothing = label_smoothing
        self.shares_trunk_calls = True  # where the number of calls need not be alike on all ranks
        self.stems = nn.ModuleDict()
        for name, m in self.modalities.items():
            build = partial(m.stem, spec.width, supervised=self.supervised)
            self.stems[name] = seeded(seed, f"stem.{name}", build)
        self.trunk: Trunk | None = None
        if spec.trunk == "transformer":
            self.trunk = seeded(seed, "trunk", lambda: Trunk(spec, causal=not self.supervised))
        self.classifier: nn.Linear | None = None
        self.decoders = nn.ModuleDict()
        if num_classes is not None:
            # No bias: the rows are class prototypes that all modalities share (paper 2.3).
            self.classifier = seeded(
                seed, "classifier", lambda: nn.Linear(spec.width, num_classes, bias=False)
            )
            if spec.logit_scale == "learned":
                start = torch.tensor(float(spec.logit_scale_value))
                scales = {name: nn.Parameter(start.clone()) for name in self.modalities}
                self.logit_scales = nn.ParameterDict(scales)
        else:
            for name, m in self.modalities.items():
                build = partial(m.decoder, spec.width)
                self.decoders[name] = seeded(seed, f"decoder.{name}", build)

    # ------------------------------------------------------------------ representation

    def tokens(self, name: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """r = h(f_m(x)): (B, T, D) and its mask (B, T) or None."""
        z, mask = self.stems[name](batch.x, batch.mask)
        return (z if self.trunk is None else self.trunk(z, mask)), mask

    def embed(self, name: str, batch: Batch) -> Tensor:
        """What stands for a sample: the mean of r over valid positions, or r at its class token.

        (B, D). Independent of the other samples of a batch.
        """
        return self._pool(name, *self.tokens(name, batch))

    def logits(self, name: str, batch: Batch) -> Tensor:
        """(B, C) class scores of the shared classifier."""
        return self.classify(name, self.embed(name, batch))

    def classify(self, name: str, pooled: Tensor) -> Tensor:
        """(B, D) what `embed` gives -> (B, C) class scores of the shared classifier."""
        assert self.classifier is not None, "the self-supervised setting has no classifier"
        logits = self.classifier(pooled)
        if self.spec.logit_scale == "learned":
            return logits * self.logit_scales[name]
        value = self.spec.logit_scale_value
        return logits if value == 1 else logits * value

    def _pool(self, name: str, r: Tensor, mask: Tensor | None) -> Tensor:
        return r[:, 0] if self.modalities[name].class_token else masked_mean(r, mask)

    # --------------------------------------------------------------------------- losses

    def forward(self, batches: Sequence[tuple[str, Batch]]) -> tuple[Tensor, Tensor]:
        """Summed loss and number of its terms for each (modality, batch) of one step: (N,), (N,).

        Terms are labelled samples, or predicted positions. One call per update, however many
        modalities it takes: data-parallel wrappers need that, and modalities whose tokens have
        the same length share one trunk call.
        """
        stemmed = [self.stems[name](batch.x, batch.mask) for name, batch in batches]
        represented = self._trunk_together(stemmed)
        pairs = [
            self._loss(name, batch, r, mask)
            for (name, batch), r, (_, mask) in zip(batches, represented, stemmed, strict=True)
        ]
        sums, terms = zip(*pairs, strict=True)
        return torch.stack(sums), torch.stack(terms)

    def _trunk_together(self, stemmed: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """h over all (tokens, mask); those of equal length that need no mask share one call."""
        if self.trunk is None:
            return [z for z, _ in stemmed]
        groups: dict[object, list[int]] = {}
        for i, (z, mask) in enumerate(stemmed):
            free = self.shares_trunk_calls and (mask is None or self.trunk.causal)
            groups.setdefault((z.shape[1], z.dtype) if free else i, []).append(i)
        out: dict[int, Tensor] = {}
        for members in groups.values():
            tokens = [stemmed[i][0] for i in members]
            mask = stemmed[members[0]][1] if len(members) == 1 else None
            r = self.trunk(torch.cat(tokens) if len(tokens) > 1 else tokens[0], mask)
            out.update(zip(members, r.split([len(z) for z in tokens]), strict=True))
        return [out[i] for i in range(len(stemmed))]

    def _loss(
        self, name: str, batch: Batch, r: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.supervised:
            logits = self.classify(name, self._pool(name, r, mask))
            total = supervised_sum(logits.float(), batch.y, self.label_smoothing)
            return total, supervised_terms(batch.y)
        modality = self.modalities[name]
        prediction = self.decoders[name](r).float()
        target = modality.targets(batch.x)
        total = next_embedding_sum(prediction, target, mask, modality.loss)
        return total, next_embedding_terms(target, mask)

    # --------------------------------------------------------------------- initialisation

    @torch.no_grad()
    def init_head_from(self, name: str, batches: Iterable[Batch]) -> list[int]:
        """Row k of the classifier <- L2-normalised mean embedding of class k of modality `name`.

        The paper's "Ours (init)" (2.3). Classes without a sample keep their random row; their
        indices are returned so that they can be reported (the reference leaves zero rows).
        """
        if self.classifier is None:
            raise UserError("head_init: class_means needs the supervised setting")
        training = self.training
        self.eval()
        weight = self.classifier.weight
        total = torch.zeros_like(weight)
        count = torch.zeros(len(weight), 1, device=weight.device)
        for batch in batches:
            batch = batch.to(weight.device)
            labelled = batch.y >= 0
            y = batch.y[labelled]
            total.index_add_(0, y, self.embed(name, batch)[labelled].to(total.dtype))
            count.index_add_(0, y, torch.ones(len(y), 1, device=weight.device))
        seen = count.squeeze(1) > 0
        weight[seen] = F.normalize(total[seen] / count[seen], dim=1)
        self.train(training)
        return torch.nonzero(~seen).flatten().tolist()

    # ---------------------------------------------------------------------- shared weights

    def shared_parameters(self) -> list[nn.Parameter]:
        """Weights that every modality uses: trunk and classifier."""
        shared = [m for m in (self.trunk, self.classifier) if m is not None]
        return [p for module in shared for p in module.parameters()]

    def freeze_trunk(self, frozen: bool) -> None:
        """Whether the trunk keeps its weights from now on; gradients pass through it still."""
        if self.trunk is not None:
            self.trunk.requires_grad_(not frozen)


def seeded(seed: int, name: str, build: Callable[[], T_]) -> T_:
    """Builds a module whose initial weights depend on (seed, name) only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}.{name}".encode()))
        return build()
