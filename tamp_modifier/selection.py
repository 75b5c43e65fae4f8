"""AMIA: which tokens of a sample enter the activation statistics of one Linear.

TAMP (arXiv 2504.09897), adaptive multimodal input activation. With a_i the attention token i receives from
the last token, o_i the L2-normalised outputs of the Linear and d_ij = 1 - <o_i, o_j>:

1. N(i) = the k nearest neighbours of token i
2. g_i = a_i + sum over n in N(i) of exp(-d_in) a_n
3. pick p = argmax g over the tokens not picked yet; for n in N(p): g_n -= exp(-0.2 d_pn) max(g_p, 0);
   stop as soon as MMD^2(all, picked) < threshold * sqrt(1 - density)

MMD^2 = mean K_XX + mean K_YY - 2 mean K_XY with the kernel exp(-|o_i - o_j|^2 / 2) = exp(<o_i, o_j> - 1), and
density is the mean of the cosine terms of DAS for this sample.

The order of the picks does not depend on the MMD, so picks are made in blocks on the host and the MMD of all
prefixes of the picks is read from one small block of K.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from tamp_modifier.diversity import MIN_NORM, similarity_terms, similarity_terms_from_cosines
from tamp_modifier.statistics import NonFiniteError
from tamp_modifier.tokens import TEXT

GRAPH_DECAY = 1.0  # of exp(-GRAPH_DECAY * d) in the graph score
DAMPING_DECAY = 0.2  # of exp(-DAMPING_DECAY * d) after a pick
# MMD^2 below this is rounding: identical tokens have density 1 and would never get below a threshold of 0.
MMD_RESOLUTION = 1e-6
FIRST_BLOCK = 32  # AMIA usually picks 4 to 20 tokens


@torch.no_grad()
def select_amia(
    outputs: Tensor,
    token_types: Tensor,
    attention: Tensor,
    *,
    num_neighbors: int = 3,
    threshold: float = 0.1,
    positive_only: bool = False,
) -> Tensor:
    """Select the tokens of one sample that represent it for one Linear (AMIA).

    Args:
        outputs: [N, d] outputs of the Linear, any floating dtype; selection runs in fp32.
        token_types: [N] modality of each token.
        attention: [N] attention of the last token, mean over heads.
        num_neighbors: k of the neighbour graph; N - 1 where the sample is smaller.
        threshold: factor of the MMD stop; larger selects fewer tokens.
        positive_only: density from the intra terms of the official code, see `mean_similarities`.

    Returns:
        Sorted token indices, int64, on the device of `outputs`; at least one and at most N. Ties are broken
        by the lower index.

    Raises:
        ValueError: shapes that do not agree, no tokens.
        NonFiniteError: values that are not finite.
    """
    if outputs.ndim != 2 or outputs.shape[0] == 0:
        raise ValueError(f"outputs must be [tokens, features] with tokens > 0, got {tuple(outputs.shape)}")
    count = outputs.shape[0]
    for name, value in (("token_types", token_types), ("attention", attention)):
        if value.shape != (count,):
            raise ValueError(f"{name} must be [{count}] like outputs, got {tuple(value.shape)}")

    vectors = outputs.float()
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    unit = vectors / norms.clamp_min(MIN_NORM)
    cosines = unit @ unit.T  # [N, N]
    if positive_only:
        _, terms = similarity_terms_from_cosines(cosines, token_types)
    else:
        _, terms = similarity_terms(unit, token_types)
    density = terms.mean() if terms.numel() else terms.new_zeros(())

    near, near_cosines = _nearest(cosines, min(num_neighbors, count - 1))  # [N, k] twice
    attention = attention.to(device=cosines.device, dtype=torch.float32)
    scores = attention + (torch.exp(GRAPH_DECAY * (near_cosines - 1.0)) * attention[near]).sum(1)
    damping = torch.exp(DAMPING_DECAY * (near_cosines - 1.0))

    kernel = cosines.sub_(1.0).exp_()  # [N, N], K; the cosines are not needed any more
    row_means = kernel.mean(1)
    limit = threshold * (1.0 - density).clamp_min(0.0).sqrt()
    scalars = torch.stack((limit, scores.sum().double(), row_means.sum().double())).tolist()
    if not all(math.isfinite(scalar) for scalar in scalars):
        raise NonFiniteError("outputs or attention of a sample are not finite")

    order = _greedy_order(scores.tolist(), near.tolist(), damping.tolist())
    picked = _stop_by_mmd(order, kernel, row_means, max(scalars[0], MMD_RESOLUTION))
    return picked.sort().values


def _nearest(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and cosines [N, k] of the k nearest other tokens, nearest first."""
    diagonal = cosines.diagonal().clone()
    cosines.fill_diagonal_(-math.inf)
    values, indices = cosines.topk(k, dim=1)
    cosines.diagonal().copy_(diagonal)
    return indices, values


def _greedy_order(
    scores: list[float], near: list[list[int]], damping: list[list[float]]
) -> Iterator[int]:
    """Tokens in the order in which they are picked, all N of them if asked for.

    Damping only ever lowers a score, so a heap entry is an upper bound: an entry that is out of date goes
    back with its present score.
    """
    heap = [(-score, token) for token, score in enumerate(scores)]
    heapq.heapify(heap)
    while heap:
        bound, token = heap[0]
        if -bound != scores[token]:
            heapq.heapreplace(heap, (-scores[token], token))
            continue
        heapq.heappop(heap)
        yield token
        gain = max(scores[token], 0.0)
        for neighbor, factor in zip(near[token], damping[token], strict=True):
            scores[neighbor] -= factor * gain


def _stop_by_mmd(order: Iterator[int], kernel: Tensor, row_means: Tensor, limit: float) -> Tensor:
    """The shortest prefix of `order` whose MMD^2 to all tokens is below `limit`, else all tokens."""
    tokens: list[int] = []
    block = FIRST_BLOCK
    while True:
        tokens += islice(order, block)
        picked = torch.tensor(tokens, device=kernel.device)
        sizes = torch.arange(1, len(tokens) + 1, device=kernel.device, dtype=torch.float64)
        within = kernel[picked][:, picked].double()  # [P, P]
        mean_within = within.cumsum(0).cumsum(1).diagonal() / sizes.square()  # K_YY of every prefix
        mean_across = row_means[picked].double().cumsum(0) / sizes  # K_XY of every prefix
        below = (row_means.double().mean() + mean_within - 2.0 * mean_across < limit).tolist()
        if True in below:
            return picked[: below.index(True) + 1]
        if len(tokens) == kernel.shape[0]:
            return picked
        block = len(tokens)


class Selection(ABC):
    """Which tokens of one sample enter the statistics of one Linear. A new rule is one subclass."""

    name: ClassVar[str]
    needs_attention: ClassVar[bool] = False

    @abstractmethod
    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        """Sorted indices of the selected tokens, from outputs [N, d], token types [N] and attention [N]."""


class AMIASelection(Selection):
    """Adaptive multimodal input activation, see `select_amia`."""

    name = "amia"
    needs_attention = True

    def __init__(
        self, num_neighbors: int = 3, threshold: float = 0.1, positive_only: bool = False
    ) -> None:
        if not isinstance(num_neighbors, int) or num_neighbors < 1:
            raise ValueError(f"num_neighbors must be an integer of at least 1, got {num_neighbors!r}")
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold must be finite and not negative, got {threshold!r}")
        self.num_neighbors = num_neighbors
        self.threshold = threshold
        self.positive_only = positive_only

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        if attention is None:
            raise ValueError("selection 'amia' needs the attention of the last token")
        return select_amia(
            outputs,
            token_types,
            attention,
            num_neighbors=self.num_neighbors,
            threshold=self.threshold,
            positive_only=self.positive_only,
        )


class AllTokens(Selection):
    """Every token, as Wanda does."""

    name = "all"

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        return torch.arange(outputs.shape[0], device=outputs.device)


class TextTokens(Selection):
    """Text tokens only; all tokens where a sample has no text."""

    name = "text"

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        text = (token_types == TEXT).nonzero().flatten().to(outputs.device)
        return text if text.numel() else torch.arange(outputs.shape[0], device=outputs.device)


SELECTIONS: dict[str, type[Selection]] = {
    rule.name: rule for rule in (AMIASelection, AllTokens, TextTokens)
}


def get_selection(name: str, **options: Any) -> Selection:
    """The selection rule called `name`, with its own options.

    Raises:
        ValueError: an unknown name.
        TypeError: an option that the rule does not have.
    """
    if name not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {name!r}")
    return SELECTIONS[name](**options)
