"""The former place of `tamp_modifier.calibration.distributed`; goes in 0.3."""

import warnings

from tamp_modifier.calibration.distributed import partition

__all__ = ["partition"]

warnings.warn(
    "tamp_modifier.distributed is now tamp_modifier.calibration.distributed and goes in 0.3",
    DeprecationWarning,
    stacklevel=2,
)
