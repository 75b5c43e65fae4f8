"""Bits a weight and bytes of a model, by what is stored and how much of it is zero."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pareto.formats import Format

SCALE_BITS = 16
MIB = 1 << 20


@dataclass(frozen=True)
class ModelSize:
    """What a model has to store.

    Attributes:
        weights: of the decoder's Linears.
        rows: of the same.
        others: parameters besides, in bf16: embeddings, norms, towers.
    """

    weights: int
    rows: int
    others: int

    @classmethod
    def of_llama(
        cls, hidden: int, inner: int, kv: int, layers: int, vocabulary: int, others: int = 0
    ) -> ModelSize:
        """Count a Llama with tied embeddings.

        Args:
            hidden: width.
            inner: width of the MLP.
            kv: rows of k_proj, and of v_proj.
            layers: of the decoder.
            vocabulary: rows of the embedding.
            others: parameters besides those of the Llama.
        """
        weights = layers * (2 * hidden * hidden + 2 * kv * hidden + 3 * inner * hidden)
        rows = layers * (2 * hidden + 2 * kv + 2 * inner + hidden)
        norms = (2 * layers + 1) * hidden
        return cls(weights, rows, vocabulary * hidden + norms + others)

    def mib(self, bits: float) -> float:
        """MiB of the whole model with so many bits a weight in the Linears."""
        return (self.weights * bits / 8 + 2 * self.others) / MIB


def bits_a_weight(stored: Format, zeros: float, size: ModelSize) -> float:
    """Bits of one weight of the Linears, scales included.

    A packed weight takes one bit of the mask, and its value where it is not zero. Values that round
    to zero are zeros as well, so a format with few values has more of them than were pruned. Where
    that is no smaller than all values side by side, these are what is stored.

    Args:
        stored: the format.
        zeros: share of the stored weights that is zero.
        size: of the model, for scales of whole rows.
    """
    scales = 0.0
    if stored.scaled:
        scales = SCALE_BITS * (1 / stored.group if stored.group else size.rows / size.weights)
    return min(stored.bits, 1 + stored.bits * (1 - zeros)) + scales


SIZES: dict[str, ModelSize] = {
    "smollm2": ModelSize.of_llama(576, 1536, 192, 30, 49152),
    "smolav": ModelSize.of_llama(576, 1536, 192, 30, 49152, others=24_138_560),
    "350m": ModelSize.of_llama(1024, 4096, 512, 20, 32000),
    "1b": ModelSize.of_llama(2048, 8192, 512, 18, 32000),
}
"""By name of the model."""
