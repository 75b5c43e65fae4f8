"""AMIA, adaptive multimodal input activation: a few tokens that represent a sample.

TAMP (arXiv 2504.09897). With a_i the attention that token i
receives from the last token, o_i the L2-normalised outputs of the Linear and d_ij = 1 - <o_i, o_j>:

1. N(i) = the k nearest neighbours of token i
2. g_i = a_i + sum over n in N(i) of exp(-d_in) a_n
3. pick p = argmax g over the tokens not picked yet; for n in N(p): g_n -= exp(-0.2 d_pn) [g_p]_+
4. stop as soon as MMD^2(all, picked) < threshold * sqrt(1 - density)

MMD^2 = mean K_XX + mean K_YY - 2 mean K_XY, X all tokens and Y the picked ones, with the kernel
exp(-|o_i - o_j|^2 / 2) = exp(<o_i, o_j> - 1); density is the mean of the cosine terms of DAS.

K_XX and K_XY come from the row means of K, and K_YY grows by one row of K a pick. The order of the
picks does not depend on the MMD, so they are made on the host and K is asked for blocks of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from tamp_modifier.diversity import MIN_NORM, pair_means, pair_sums_from_cosines
from tamp_modifier.selection.base import Selection
from tamp_modifier.statistics import NonFiniteError

GRAPH_DECAY = 1.0  # of exp(-GRAPH_DECAY * d) in the graph score
DAMPING_DECAY = 0.2  # of exp(-DAMPING_DECAY * d) after a pick
# MMD^2 below this is rounding. Identical tokens have density 1: nothing is below a threshold of 0.
MMD_RESOLUTION = 1e-6
FIRST_BLOCK = 24  # AMIA usually picks 4 to 20 tokens
TILE = 128  # rows of the cosine matrix made at a time on the CPU


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
    """Select the tokens that represent one sample for one Linear (AMIA).

    Args:
        outputs: [N, d] outputs of the Linear, any floating dtype; selection runs in fp32.
        token_types: [N] modality of each token.
        attention: [N] attention of the last token, mean over heads.
        num_neighbors: k of the neighbour graph; N - 1 where the sample is smaller.
        threshold: factor of the MMD stop; larger selects fewer tokens.
        positive_only: density from the intra terms of the official code, see `mean_similarities`.

    Returns:
        Sorted token indices, int64, on the device of `outputs`; at least one and at most N. Equal
        scores are picked by index.

    Raises:
        ValueError: shapes that do not agree, no tokens.
        NonFiniteError: values that are not finite.
    """
    count = outputs.shape[0]
    if outputs.ndim != 2 or count == 0:
        raise ValueError(f"outputs must be [tokens > 0, features], got {tuple(outputs.shape)}")
    for name, value in (("token_types", token_types), ("attention", attention)):
        if value.shape != (count,):
            raise ValueError(f"{name} must be [{count}] as outputs, got {tuple(value.shape)}")

    cosines = _cosines(outputs).fill_diagonal_(0.0)  # [N, N]
    terms = pair_means(pair_sums_from_cosines(cosines, token_types, positive_only))
    density = sum(terms.values()) / max(len(terms), 1)

    cosines.fill_diagonal_(-math.inf)  # a token is no neighbour of its own
    near_cosines, near = cosines.topk(min(num_neighbors, count - 1), dim=1)  # [N, k] both
    attention = attention.to(device=cosines.device, dtype=torch.float32)
    weights = (near_cosines - 1.0).mul_(GRAPH_DECAY).exp_()
    scores = attention + (weights * attention[near]).sum(1)  # [N], g

    kernel = cosines.sub_(1.0).exp_().fill_diagonal_(1.0)  # K; the cosines are not needed any more
    score_list, row_means = torch.stack((scores, kernel.mean(1))).tolist()
    if not math.isfinite(sum(score_list) + sum(row_means)):
        raise NonFiniteError("outputs or attention of a sample are not finite")

    order = pick_order(score_list, near.tolist(), near_cosines.tolist())
    limit = max(threshold * math.sqrt(max(1.0 - density, 0.0)), MMD_RESOLUTION)
    picked = _stop_by_mmd(order, kernel, row_means, limit)
    return torch.tensor(sorted(picked), device=outputs.device)


def _cosines(outputs: Tensor) -> Tensor:
    """Cosine similarities [N, N] in fp32."""
    vectors = outputs.float()
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(MIN_NORM)
    # The copy in fp32, where one was made, is ours to overwrite.
    unit = vectors / norms if vectors is outputs else vectors.div_(norms)
    count = len(unit)
    if unit.device.type != "cpu" or count <= TILE:
        return unit @ unit.T
    # The matrix is symmetric: on the CPU, making its upper half and mirroring it is a third faster.
    cosines = unit.new_empty(count, count)
    for start in range(0, count, TILE):
        stop = min(start + TILE, count)
        torch.mm(unit[start:stop], unit[start:].T, out=cosines[start:stop, start:])
        cosines[stop:, start:stop] = cosines[start:stop, stop:].T
    return cosines


def pick_order(
    scores: list[float], near: list[list[int]], near_cosines: list[list[float]]
) -> Iterator[int]:
    """Tokens in the order in which they are picked, all N of them if asked for.

    Damping only lowers scores, so an entry of the heap is an upper bound: one that is out of date
    goes back with its present score.
    """
    heap = [(-score, token) for token, score in enumerate(scores)]
    heapq.heapify(heap)
    while heap:
        bound, pick = heap[0]
        if -bound != scores[pick]:
            heapq.heapreplace(heap, (-scores[pick], pick))
            continue
        heapq.heappop(heap)
        yield pick
        gain = max(scores[pick], 0.0)
        for token, cosine in zip(near[pick], near_cosines[pick], strict=True):
            scores[token] -= math.exp(DAMPING_DECAY * (cosine - 1.0)) * gain


def _stop_by_mmd(
    order: Iterator[int], kernel: Tensor, row_means: list[float], limit: float
) -> list[int]:
    """Return the first tokens of `order`, until their MMD^2 to all tokens is below `limit`."""
    mean_all = sum(row_means) / len(row_means)  # K_XX
    sum_within = sum_across = 0.0  # of K_YY, and of K_XY in rows of means
    picked: list[int] = []
    while len(picked) < len(row_means):
        known = len(picked)
        picked += islice(order, max(known, FIRST_BLOCK))
        indices = torch.tensor(picked, device=kernel.device)
        rows = kernel[indices[known:]][:, indices].tolist()  # [new picks, picks]
        for size, row in enumerate(rows, start=known + 1):
            sum_within += 2.0 * sum(row[: size - 1]) + row[size - 1]
            sum_across += row_means[picked[size - 1]]
            if mean_all + sum_within / size**2 - 2.0 * sum_across / size < limit:
                return picked[:size]
    return picked


class AMIASelection(Selection):
    """Adaptive multimodal input activation, see `select_amia`.

    Args:
        num_neighbors: neighbours in the graph, a whole number.
        threshold: factor of the stop criterion; larger selects fewer tokens.
        positive_only: density over pairs with a positive cosine only, as the official code has it.
    """

    name = "amia"
    needs_attention = True

    def __init__(
        self, num_neighbors: float = 3, threshold: float = 0.1, positive_only: bool = False
    ) -> None:
        # A recipe gives it as a float.
        if not (num_neighbors >= 1 and float(num_neighbors).is_integer()):
            raise ValueError(f"num_neighbors must be an integer >= 1, got {num_neighbors:g}")
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold must be finite and >= 0, got {threshold!r}")
        self.num_neighbors = int(num_neighbors)
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

    def operations(self, tokens: float, out_features: int) -> float:
        """All tokens are compared with all in their outputs."""
        return 2.0 * tokens**2 * out_features

    def memory(self, tokens: int) -> int:
        """About three matrices [tokens, tokens] in fp32: the cosines and what is made of them."""
        return 3 * 4 * tokens**2
