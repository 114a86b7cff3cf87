"""Read bandwidth of main memory: the fastest of a few streaming passes over a big array."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

WAYS = {
    "sum": lambda x: x.sum(),
    "max": lambda x: x.max(),
    "dot": lambda x: np.dot(x, x),
    "matrix times vector": lambda x: x.reshape(-1, 1024) @ np.ones(1024, np.float32),
}


def measure(threads: int, *, megabytes: int = 1024, repeats: int = 5) -> dict[str, float]:
    """Bytes per second of each way with so many threads, best of `repeats`."""
    x = np.ones(megabytes * 2**18, np.float32)
    parts = np.array_split(x, threads)
    best = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, way in WAYS.items():
            seconds = []
            for _ in range(repeats):
                began = time.perf_counter()
                list(pool.map(way, parts))
                seconds.append(time.perf_counter() - began)
            best[name] = x.nbytes / min(seconds)
    return best
