"""Compiled pieces that several detectors share; all work on one voxel or on a run of voxels, on one thread.

Rows of kernels and distances are padded to whole vectors of LANES numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numba
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError

LANES = 16
# Reassociation vectorises sums and maxima; nothing here is NaN or infinite.
FAST = {"contract", "reassoc", "nsz", "nnan", "ninf", "arcp"}
compiled = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", boundscheck=False)


def over_voxels(kernel: Callable[[int, int], None], voxels: int, threads: int | None = None) -> None:
    """Run a compiled ``kernel(start, stop)`` that releases the GIL over all voxels, on several threads.

    Each voxel is solved by itself, so results do not depend on the number of threads.
    """
    if threads is None:
        threads = joblib.cpu_count()
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


def check_threads(threads: int | None) -> int | None:
    """A number of threads as it is.

    Raises:
        InputError: less than one.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads!r}: at least 1, or None for all cores.")
    return threads


@compiled
def buffers(n: int, d: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    width = -(-n // LANES) * LANES
    return np.zeros((width, width), np.float32), np.zeros((-(-d // 4) * 4, width), np.float32)


@compiled
def distances(x: NDArray[Any], centred: NDArray[Any], distance: NDArray[Any]) -> None:
    """Squared distances of all pairs: ``|x|^2 + |y|^2 - 2 x.y`` about the mean, where rounding is smallest.

    Args:
        x: ``(n, d)``.
        centred: buffer that is zero past n and d, ``(d in fours, width)``: x about its mean, transposed.
        distance: ``(width, width)`` output.
    """
    n, d = x.shape
    for k in range(d):
        feature = centred[k]
        mean = 0.0
        for i in range(n):
            feature[i] = x[i, k]
            mean += np.float64(x[i, k])
        shift = np.float32(mean / n)
        for i in range(n):
            feature[i] -= shift

    for i in range(0, n, 4):  # products of four rows and four features at a time stay in registers
        begin = i // LANES * LANES
        row_0, row_1, row_2, row_3 = (
            distance[i, begin:], distance[i + 1, begin:], distance[i + 2, begin:], distance[i + 3, begin:]
        )  # fmt: skip
        distance[i : i + 4, begin:] = 0
        for k in range(0, len(centred), 4):
            c_0, c_1, c_2, c_3 = (
                centred[k, begin:], centred[k + 1, begin:], centred[k + 2, begin:], centred[k + 3, begin:]
            )  # fmt: skip
            f = centred[k : k + 4, i : i + 4]
            f_00, f_01, f_02, f_03 = f[0, 0], f[1, 0], f[2, 0], f[3, 0]
            f_10, f_11, f_12, f_13 = f[0, 1], f[1, 1], f[2, 1], f[3, 1]
            f_20, f_21, f_22, f_23 = f[0, 2], f[1, 2], f[2, 2], f[3, 2]
            f_30, f_31, f_32, f_33 = f[0, 3], f[1, 3], f[2, 3], f[3, 3]
            for j in range(len(row_0)):
                x_0, x_1, x_2, x_3 = c_0[j], c_1[j], c_2[j], c_3[j]
                row_0[j] += f_00 * x_0 + f_01 * x_1 + f_02 * x_2 + f_03 * x_3
                row_1[j] += f_10 * x_0 + f_11 * x_1 + f_12 * x_2 + f_13 * x_3
                row_2[j] += f_20 * x_0 + f_21 * x_1 + f_22 * x_2 + f_23 * x_3
                row_3[j] += f_30 * x_0 + f_31 * x_1 + f_32 * x_2 + f_33 * x_3

    squares = np.empty(n, np.float32)
    for i in range(n):
        squares[i] = distance[i, i]
    for i in range(n):
        row = distance[i]
        for j in range(i):
            row[j] = distance[j, i]
        tail, right = row[i:n], squares[i:]
        for j in range(len(tail)):
            tail[j] = max(squares[i] + right[j] - 2 * tail[j], np.float32(0))
        row[i] = 0


@compiled
def _pack(
    support: NDArray[Any], first: NDArray[Any], lowest: NDArray[Any], step: NDArray[Any], packed: NDArray[Any]
) -> None:
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
def _unpack(
    packed: NDArray[Any],
    first: NDArray[Any],
    lowest: NDArray[Any],
    step: NDArray[Any],
    support: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    for voxel in range(start, stop):
        for s in range(first[voxel], first[voxel + 1]):
            for k in range(packed.shape[1]):
                support[s, k] = lowest[voxel] + step[voxel] * np.float32(packed[s, k])
