"""Verified matches between training images, and what poses make of them.

`Matches` is what everything here exchanges: `features` finds them with pycolmap, `sfm` moves cameras by them, `gate`
says whether to believe the result, `epipolar` is their term in the training loss, and `tracks` another.
"""

from hashpose_ns.matches.matches import Matches

__all__ = ["Matches"]
