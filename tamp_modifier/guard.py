"""The former place of `tamp_modifier.zeros.keep`; goes in 0.3."""

import warnings

from tamp_modifier.zeros.keep import guard_zeros, keep_zeros, refuse_lost_zeros

__all__ = ["guard_zeros", "keep_zeros", "refuse_lost_zeros"]

warnings.warn(
    "tamp_modifier.guard is now tamp_modifier.zeros.keep and goes in 0.3",
    DeprecationWarning,
    stacklevel=2,
)
