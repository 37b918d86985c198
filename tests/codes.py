"""Codes of controls as encoders give them, the degenerate ones among them."""

import numpy as np

KINDS = (
    "normal",
    "low rank",
    "constant features",
    "duplicates",
    "one outlier",
    "far from zero",
    "identical",
    "all equal",
)


def codes(seed, voxels, n, d, kind="normal"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(voxels, n, d))
    if kind == "low rank":
        x = np.maximum(rng.normal(size=(voxels, n, 3)) @ rng.normal(size=(voxels, 3, d)) + 0.1 * x, 0)
    elif kind == "constant features":
        x[..., ::2] = rng.normal(size=d)[::2]
    elif kind == "duplicates":
        x = x[:, np.arange(n) // 3]
    elif kind == "one outlier":
        x[:, 0] += 1000
    elif kind == "far from zero":
        x = 0.01 * x + 50
    elif kind == "identical":
        x[:] = x[:, :1]
    elif kind == "all equal":
        x[:] = 0.1
    return x.astype(np.float32)
