"""Compiled pieces that several detectors share; all work on one voxel or on a run of voxels, on one thread.

Rows of kernels and distances are padded to whole vectors of LANES numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

LANES = 16
# Reassociation vectorises sums and maxima; nothing here is NaN or infinite.
FAST = {"contract", "reassoc", "nsz", "nnan", "ninf", "arcp"}
compiled = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", boundscheck=False)


def over_voxels(kernel: Callable[[int, int], None], voxels: int, threads: int | None = None) -> None:
    """Run a compiled ``kernel(start, stop)`` that releases the GIL over all voxels, on several threads.

    Each voxel is solved by itself, so results do not depend on the number of threads.
    """
    threads = threads or len(os.sched_getaffinity(0))
    step = max(1, min(2048, -(-voxels // threads)))
    starts = range(0, voxels, step)
    if threads == 1 or len(starts) <= 1:
        kernel(0, voxels)
        return
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(kernel, start, min(start + step, voxels)) for start in starts]:
            job.result()


def packed(rows: NDArray[np.float32], first: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Rows ``(s, d)`` as 16-bit integers between the extremes of each voxel's, ``first[i]:first[i + 1]``."""
    lowest, step = np.zeros(len(first) - 1, np.float32), np.zeros(len(first) - 1, np.float32)
    integers = np.empty(rows.shape, np.uint16)
    _pack(rows, first, lowest, step, integers)
    return {"packed": integers, "lowest": lowest, "step": step}


def unpacked(
    state: Mapping[str, NDArray[Any]], first: NDArray[np.int64], threads: int | None = None
) -> NDArray[np.float32]:
    """The rows of ``packed``, to half a step."""
    rows = np.empty(state["packed"].shape, np.float32)
    arguments = (state["packed"], first, state["lowest"], state["step"], rows)
    over_voxels(lambda start, stop: _unpack(*arguments, start, stop), len(first) - 1, threads)
    return rows


@compiled
def buffers(n, d):
    width = -(-n // LANES) * LANES
    return np.zeros((width, width), np.float32), np.zeros((-(-d // 4) * 4, width), np.float32)


@compiled
def distances(x, centred, distance):
    """Squared distances of all pairs: ``|x|^2 + |y|^2 - 2 x.y`` about the mean, where rounding is smallest.

    Args:
        x: ``(n, d)``.
        centred: buffer that is zero past n and d, ``(d in fours, width)``: x about its mean, transposed.
        distance: ``(width, width)`` output.
    """
    n, d = x.shape
    mean = np.zeros(d)
    for i in range(n):
        row = x[i]
        for k in range(d):
            mean[k] += np.float64(row[k])
    for k in range(d):
        mean[k] /= n
    for i in range(n):
        for k in range(d):
            centred[k, i] = np.float32(np.float64(x[i, k]) - mean[k])

    for i in range(0, n, 2):  # products of two rows and four features at a time stay in registers
        begin = i // LANES * LANES
        row_0, row_1 = distance[i, begin:], distance[i + 1, begin:]
        row_0[:] = 0
        row_1[:] = 0
        for k in range(0, len(centred), 4):
            c_0, c_1 = centred[k, begin:], centred[k + 1, begin:]
            c_2, c_3 = centred[k + 2, begin:], centred[k + 3, begin:]
            a_0, a_1, a_2, a_3 = centred[k, i], centred[k + 1, i], centred[k + 2, i], centred[k + 3, i]
            i_1 = i + 1
            b_0, b_1, b_2, b_3 = (
                centred[k, i_1],
                centred[k + 1, i_1],
                centred[k + 2, i_1],
                centred[k + 3, i_1],
            )
            for j in range(len(row_0)):
                row_0[j] += a_0 * c_0[j] + a_1 * c_1[j] + a_2 * c_2[j] + a_3 * c_3[j]
                row_1[j] += b_0 * c_0[j] + b_1 * c_1[j] + b_2 * c_2[j] + b_3 * c_3[j]

    for i in range(n):
        for j in range(i + 1, n):
            distance[i, j] = max(distance[i, i] + distance[j, j] - 2 * distance[i, j], np.float32(0))
    for i in range(n):
        distance[i, i] = 0
        for j in range(i):
            distance[i, j] = distance[j, i]


@compiled
def _pack(support, first, lowest, step, packed):
    for voxel in range(len(first) - 1):
        rows = support[first[voxel] : first[voxel + 1]]
        low, high = rows.min(), rows.max()
        lowest[voxel] = low
        step[voxel] = (high - low) / np.float32(65535)
        factor = np.float32(1) / step[voxel] if step[voxel] > 0 else np.float32(0)
        for i in range(len(rows)):
            for k in range(rows.shape[1]):
                packed[first[voxel] + i, k] = np.uint16(
                    min((rows[i, k] - low) * factor + np.float32(0.5), 65535)
                )


@compiled
def _unpack(packed, first, lowest, step, support, start, stop):
    for voxel in range(start, stop):
        for s in range(first[voxel], first[voxel + 1]):
            for k in range(packed.shape[1]):
                support[s, k] = lowest[voxel] + step[voxel] * np.float32(packed[s, k])
