"""DAS: how diverse the outputs of one Linear are, within and between modalities.

TAMP (arXiv 2504.09897), diversity-aware sparsity. For the outputs o_i of one Linear over one sample, with
cos the cosine similarity:

- intra-modality diversity of m:       1 - mean over pairs i < j in m of cos(o_i, o_j)
- inter-modality diversity of (m, n):  1 - mean over i in m, j in n of cos(o_i, o_j)
- importance of the Linear:            the sum of all terms present, averaged over samples

The means need no token-by-token matrix. With unit vectors u_i and s_m = sum of u_i over modality m,

    sum over i != j in m of cos = |s_m|^2 - N_m        sum over i in m, j in n of cos = <s_m, s_n>

so the cost is O(tokens x features).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Pair = tuple[int, int]

# A token whose norm is below this has no direction: its cosine with every other token counts as 0.
MIN_NORM = 1e-12


def mean_similarities(
    outputs: Tensor, token_types: Tensor, positive_only: bool = False
) -> dict[Pair, float]:
    """Mean cosine similarity of every pair of modalities in one sample.

    Args:
        outputs: [N, d] outputs of one Linear, any floating dtype, padding removed.
        token_types: [N] modality of each token, any integers.
        positive_only: average the intra-modality terms only over pairs whose cosine is above 0, as the
            official code does (an artefact of how it masks the upper triangle; 0 when there is no such
            pair). Needs the matrix of all pairs.

    Returns:
        The mean cosine of (m, m) over pairs of different tokens and of (m, n), m < n, over all pairs. A
        modality with fewer than two tokens has no (m, m) entry; no tokens give an empty dict. Outputs that
        are not finite give NaN.
    """
    pairs, values = similarity_terms(outputs, token_types, positive_only)
    return dict(zip(pairs, values.tolist(), strict=True))


def importance(similarities: Mapping[Pair, float]) -> float:
    """Importance of a Linear: the sum of 1 - cosine over the terms present (0 when there is none)."""
    return float(sum(1.0 - cosine for cosine in similarities.values()))


def similarity_terms(
    outputs: Tensor, token_types: Tensor, positive_only: bool = False
) -> tuple[list[Pair], Tensor]:
    """The terms of `mean_similarities` as pairs and an fp64 tensor [pairs] left on the device of `outputs`."""
    if outputs.ndim != 2 or token_types.shape != outputs.shape[:1]:
        raise ValueError(
            f"outputs must be [tokens, features] and token_types [tokens], got {tuple(outputs.shape)} "
            f"and {tuple(token_types.shape)}"
        )
    types, member, counts = _membership(token_types, outputs.device)  # [M], [M, N], [M]
    vectors = outputs.float()
    norms = torch.linalg.vector_norm(vectors, dim=1)  # [N]
    inverse = norms.clamp_min(MIN_NORM).reciprocal()
    if positive_only:
        unit = vectors * inverse[:, None]
        return similarity_terms_from_cosines(unit @ unit.T, token_types)
    sums = ((member * inverse) @ vectors).double()  # [M, d], s_m
    totals = sums @ sums.T  # [M, M]
    # The pairs (i, i) are not pairs of tokens: take |u_i|^2 off, which is 1, or 0 for a zero vector.
    totals -= torch.diag((member @ (norms * inverse).square()).double())
    return _terms(types, counts, totals, None)


def similarity_terms_from_cosines(
    cosines: Tensor, token_types: Tensor
) -> tuple[list[Pair], Tensor]:
    """`similarity_terms` with positive_only=True, from a matrix [N, N] of cosines that is already there."""
    types, member, counts = _membership(token_types, cosines.device)
    totals = member @ cosines @ member.T  # [M, M]
    positive = cosines > 0
    positive.fill_diagonal_(False)
    # Row sums first: only the M x M diagonal is wanted, so modality m is summed over its own columns.
    kept = torch.where(positive, cosines, 0.0)
    own_sums = torch.einsum("mi,ij,mj->m", member, kept, member)
    own_counts = torch.einsum("mi,ij,mj->m", member, positive.float(), member)
    own_means = own_sums.double() / own_counts.double().clamp_min(1.0)
    return _terms(types, counts, totals.double(), own_means)


def _membership(token_types: Tensor, device: torch.device) -> tuple[list[int], Tensor, list[int]]:
    """Modalities present (sorted), their fp32 one-hot rows [M, N] on `device`, and their token counts."""
    types, counts = torch.unique(token_types, return_counts=True)
    member = (types[:, None] == token_types[None, :]).to(device=device, dtype=torch.float32)
    return types.tolist(), member, counts.tolist()


def _terms(
    types: list[int], counts: list[int], totals: Tensor, own_means: Tensor | None
) -> tuple[list[Pair], Tensor]:
    """Divide the sums of cosines [M, M] by their numbers of pairs and flatten what is present."""
    pairs: list[Pair] = []
    values: list[Tensor] = []
    for i, m in enumerate(types):
        for j in range(i, len(types)):
            number = counts[i] * (counts[i] - 1) if i == j else counts[i] * counts[j]
            if number == 0:
                continue
            pairs.append((m, types[j]))
            mean_is_known = i == j and own_means is not None
            values.append(own_means[i] if mean_is_known else totals[i, j] / number)  # type: ignore[index]
    if not values:
        return pairs, totals.new_zeros(0)
    # Rounding may leave the range of a cosine by 1e-7; NaN passes through.
    return pairs, torch.stack(values).clamp(-1.0, 1.0)


class DiversityTracker:
    """Similarities and importance of one Linear, gathered sample by sample.

    Samples that give no term (a single token) count in `samples` but not in the means. Nothing is read back
    from the device before a result is asked for.
    """

    def __init__(self, positive_only: bool = False) -> None:
        self.positive_only = positive_only
        self.samples = 0
        self._pairs: list[list[Pair]] = []
        self._values: list[Tensor] = []

    def update(self, outputs: Tensor, token_types: Tensor) -> None:
        """Add one sample: outputs [N, d] and token types [N], padding removed."""
        pairs, values = similarity_terms(outputs, token_types, self.positive_only)
        self.samples += 1
        if pairs:
            self._pairs.append(pairs)
            self._values.append(values)

    @property
    def importance(self) -> float:
        """Importance averaged over samples; 0 when no sample had two tokens; NaN after non-finite outputs."""
        samples = self._read()
        return sum(importance(sample) for sample in samples) / max(len(samples), 1)

    @property
    def similarities(self) -> dict[Pair, float]:
        """Mean cosine of every pair of modalities over the samples in which the pair is present."""
        gathered: dict[Pair, list[float]] = {}
        for sample in self._read():
            for pair, cosine in sample.items():
                gathered.setdefault(pair, []).append(cosine)
        return {pair: sum(values) / len(values) for pair, values in sorted(gathered.items())}

    def _read(self) -> list[dict[Pair, float]]:
        if not self._values:
            return []
        flat = iter(torch.cat(self._values).tolist())  # one transfer for all samples
        return [{pair: next(flat) for pair in pairs} for pairs in self._pairs]
