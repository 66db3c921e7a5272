"""The encoding that most tests use."""

from hashpose_ns.encoding import HashEncodingConfig, SmoothedHashEncoding


def make_encoding(backend: str = "auto", num_dims: int = 3, **settings) -> SmoothedHashEncoding:
    """A small encoding with tables in U[0, 1]; resolutions 4, 16, 64, 256, the first dense, the last hashed.

    They are powers of two, so that float32 and float64 find the same cell and the same position in it.
    """
    defaults = dict(num_levels=4, base_resolution=4, max_resolution=256, log2_hashmap_size=10, init_scale=1.0)
    config = HashEncodingConfig(**{**defaults, **settings}, backend=backend)
    return SmoothedHashEncoding(config, num_dims=num_dims)
