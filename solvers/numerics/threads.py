"""Thread counts of the pools that solvers use; each is put back, so that no stage changes another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def numba_threads(count: int) -> Iterator[None]:
    """Let numba's parallel loops of this thread use at most ``count`` threads."""
    import numba

    before = numba.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(max(1, min(count, most)))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch, and what of BLAS and LAPACK it calls, use at most ``count`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def rows_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for rows beside each other, one BLAS thread each: two gain nothing, and results depend on them."""
    import torch

    count = max(1, count)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    with torch_threads(1), threadpool_limits(1, user_api="blas"), pool:
        yield pool


Map = Callable[[Callable, Iterable], list]


def one_by_one(work: Callable, items: Iterable) -> list:
    """A ``map`` without threads."""
    return [work(item) for item in items]


@contextmanager
def workers(threads: int, pieces: int) -> Iterator[Map]:
    """A ``map`` over pieces of work, on threads that multiply alone."""
    import torch

    with torch_threads(1):
        if pieces == 1 or threads == 1:
            yield one_by_one
            return
        with ThreadPoolExecutor(min(threads, pieces), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda work, items: list(pool.map(work, items))
