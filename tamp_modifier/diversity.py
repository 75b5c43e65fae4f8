"""DAS: how diverse the outputs of one Linear are, within and between modalities.

TAMP (arXiv 2504.09897), diversity-aware sparsity. For the outputs o_i of one Linear over one
sample, with cos the cosine similarity:

- intra-modality diversity of m:       1 - mean over pairs i < j in m of cos(o_i, o_j)
- inter-modality diversity of (m, n):  1 - mean over i in m, j in n of cos(o_i, o_j)
- importance of the Linear:            the sum of all terms present, averaged over samples

The means need no token-by-token matrix. With unit vectors u_i and s_m = sum of u_i over modality m,

    sum over i != j in m of cos = |s_m|^2 - N_m        sum over i in m, j in n of cos = <s_m, s_n>

so the cost is O(tokens x features).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]

# A token whose norm is below this has no direction: its cosine with every other token counts as 0.
MIN_NORM = 1e-12


class PairSums(NamedTuple):
    """Sums of cosines of one sample, before the division by the numbers of pairs.

    Attributes:
        types: modalities present, sorted.
        counts: tokens of each.
        sums: [M, M] fp64, on the device of the outputs; pairs (i, i) left out.
    """

    types: list[int]
    counts: list[int]
    sums: Tensor


def mean_similarities(
    outputs: Tensor, token_types: Tensor, positive_only: bool = False
) -> dict[Pair, float]:
    """Mean cosine similarity of every pair of modalities in one sample.

    Args:
        outputs: [N, d] outputs of one Linear, any floating dtype, padding removed.
        token_types: [N] modality of each token, integers from 0.
        positive_only: average the intra-modality terms only over pairs whose cosine is above 0, as
            the official code does (an artefact of how it masks the upper triangle); 0 where there
            is no such pair. This needs the matrix of all pairs.

    Returns:
        The mean cosine of (m, m) over pairs of different tokens and of (m, n), m < n, over all
        pairs. A modality with fewer than two tokens has no (m, m) entry; no tokens give an empty
        dict. A zero vector has cosine 0 with every token. Outputs that are not finite give NaN.

    Raises:
        ValueError: shapes that do not agree.
    """
    return pair_means(pair_sums(outputs, token_types, positive_only))


def importance(similarities: Mapping[Pair, float]) -> float:
    """Sum 1 - cosine over the terms of a Linear that are present: its importance, 0 without any."""
    return float(sum(1.0 - cosine for cosine in similarities.values()))


@torch.no_grad()
def pair_sums(outputs: Tensor, token_types: Tensor, positive_only: bool = False) -> PairSums:
    """Return the sums behind `mean_similarities`, without waiting for the device of `outputs`."""
    if outputs.ndim != 2 or token_types.shape != outputs.shape[:1]:
        raise ValueError(
            "outputs must be [tokens, features] and token_types [tokens], "
            f"got {tuple(outputs.shape)} and {tuple(token_types.shape)}"
        )
    vectors = outputs.float()
    norms = torch.linalg.vector_norm(vectors, dim=1)  # [N]
    inverse = norms.clamp_min(MIN_NORM).reciprocal()
    if positive_only:
        unit = vectors * inverse[:, None]
        return pair_sums_from_cosines((unit @ unit.T).fill_diagonal_(0.0), token_types, True)
    types, counts, member = _membership(token_types, outputs.device)
    sums = ((member * inverse) @ vectors).double()  # [M, d], s_m
    own = (member @ (norms * inverse).square()).double()  # [M], N_m less the zero vectors
    return PairSums(types, counts, sums @ sums.T - own.diag())


@torch.no_grad()
def pair_sums_from_cosines(
    cosines: Tensor, token_types: Tensor, positive_only: bool = False
) -> PairSums:
    """`pair_sums` from cosines [N, N] that are already there, with zeros on the diagonal."""
    types, counts, member = _membership(token_types, cosines.device)
    sums = (member @ cosines @ member.T).double()  # [M, M]
    if positive_only:
        positive = cosines.clamp_min(0.0)
        number = ((member @ (positive > 0).float()) * member).sum(1).double()  # [M]
        total = ((member @ positive) * member).sum(1).double()
        pairs = torch.tensor([count * (count - 1) for count in counts], device=sums.device)
        # Scaled so that the division by all pairs of a modality gives the mean over the positive.
        sums.diagonal().copy_(total / number.clamp_min(1.0) * pairs)
    return PairSums(types, counts, sums)


def pair_means(sums: PairSums) -> dict[Pair, float]:
    """Divide by the numbers of pairs; pairs of modalities without a pair of tokens are left out."""
    means: dict[Pair, float] = {}
    rows = sums.sums.tolist()
    for i, (m, count) in enumerate(zip(sums.types, sums.counts, strict=True)):
        for j in range(i, len(sums.types)):
            number = count * (count - 1) if i == j else count * sums.counts[j]
            if number:
                # Rounding may leave the range of a cosine. In this order min and max pass NaN on.
                means[m, sums.types[j]] = max(min(rows[i][j] / number, 1.0), -1.0)
    return means


def _membership(token_types: Tensor, device: torch.device) -> tuple[list[int], list[int], Tensor]:
    """Modalities present, their numbers of tokens, and fp32 one-hot rows [M, N] on `device`."""
    counts = torch.bincount(token_types).tolist()
    types = [m for m, count in enumerate(counts) if count]
    present = torch.tensor(types, device=token_types.device)
    member = (present[:, None] == token_types).to(device=device, dtype=torch.float32)
    return types, [counts[m] for m in types], member


class DiversityTotals(NamedTuple):
    """Sums over samples of one Linear.

    Attributes:
        samples: samples that gave a term.
        importance: sum of their importance.
        pairs: sum of the mean cosines and number of samples, by pair of modalities.
    """

    samples: int = 0
    importance: float = 0.0
    pairs: Mapping[Pair, tuple[float, int]] = {}

    @property
    def mean_importance(self) -> float:
        """Mean over samples; 0 where no sample had two tokens; NaN if an output was not finite."""
        return self.importance / max(self.samples, 1)

    @property
    def similarities(self) -> dict[Pair, float]:
        """Mean cosine of every pair of modalities over the samples in which the pair is present."""
        return {pair: total / count for pair, (total, count) in sorted(self.pairs.items())}

    def plus(self, other: DiversityTotals) -> DiversityTotals:
        """Return the totals of the samples of both."""
        pairs = dict(self.pairs)
        for pair, (total, count) in other.pairs.items():
            before, number = pairs.get(pair, (0.0, 0))
            pairs[pair] = (before + total, number + count)
        return DiversityTotals(
            self.samples + other.samples, self.importance + other.importance, pairs
        )


class DiversityTracker:
    """Similarities and importance of one Linear, gathered sample by sample.

    Samples that give no term (a single token) count in `samples` but not in the means. With token
    types on the host, outputs on an accelerator are not waited for until a result is asked for.
    """

    def __init__(self, positive_only: bool = False) -> None:
        self.positive_only = positive_only
        self.samples = 0
        self._pending: list[PairSums] = []
        self._terms: list[dict[Pair, float]] = []

    def update(self, outputs: Tensor, token_types: Tensor) -> None:
        """Add one sample: outputs [N, d] and token types [N], padding removed."""
        self._pending.append(pair_sums(outputs, token_types, self.positive_only))
        self.samples += 1
        if outputs.device.type == "cpu":
            # Nothing to wait for; and thousands of tiny tensors between large ones that come and
            # go would keep the heap from being used again.
            self._read()

    @property
    def importance(self) -> float:
        """Mean over samples; 0 where no sample had two tokens; NaN if an output was not finite."""
        return self.totals.mean_importance

    @property
    def similarities(self) -> dict[Pair, float]:
        """Mean cosine of every pair of modalities over the samples in which the pair is present."""
        return self.totals.similarities

    @property
    def totals(self) -> DiversityTotals:
        """The sums over all samples so far."""
        gathered: dict[Pair, list[float]] = {}
        for terms in self._read():
            for pair, cosine in terms.items():
                gathered.setdefault(pair, []).append(cosine)
        return DiversityTotals(
            len(self._terms),
            sum(importance(terms) for terms in self._terms),
            {pair: (sum(values), len(values)) for pair, values in gathered.items()},
        )

    def _read(self) -> list[dict[Pair, float]]:
        self._terms += [terms for sums in self._pending if (terms := pair_means(sums))]
        self._pending.clear()
        return self._terms
