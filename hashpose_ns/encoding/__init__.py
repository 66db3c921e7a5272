"""The smoothed multi-resolution hash encoding.

:mod:`hash_encoding` has the module and its settings, :mod:`reference` the mathematics in plain torch, :mod:`backends`
the choice among the files that compute the same thing faster.
"""

from hashpose_ns.encoding.hash_encoding import HashEncodingConfig, SmoothedHashEncoding

__all__ = ["HashEncodingConfig", "SmoothedHashEncoding"]
