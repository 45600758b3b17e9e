"""BLAS and LAPACK by address, against numpy."""

import threading

import numpy as np
import pytest
import torch

from fwbench.solvers.numerics import lapack


def definite(n: int, dtype: torch.dtype) -> torch.Tensor:
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return (A @ A.mT / n + torch.eye(n)).to(dtype)


@pytest.mark.parametrize("n", [1, 2, 7, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_numpy(n: int, dtype: torch.dtype) -> None:
    A = definite(n, dtype)
    near = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    exact, factor = A.double().numpy(), A.clone()
    assert lapack.cholesky(factor)
    np.testing.assert_allclose(factor.tril().numpy(), np.linalg.cholesky(exact), **near)
    right = torch.linspace(-1, 2, n, dtype=dtype)
    before = right.clone()
    np.testing.assert_allclose(lapack.solve(factor, right).numpy(), np.linalg.solve(exact, right.numpy()), **near)
    assert torch.equal(right, before)
    inverse = lapack.inverse(factor)
    np.testing.assert_allclose(inverse.numpy(), np.linalg.inv(exact), **near)
    assert torch.equal(inverse, inverse.mT)
    B = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(lapack.product(B, A).numpy(), B.double().numpy() @ exact, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_indefinite_and_nan_are_refused(dtype: torch.dtype) -> None:
    assert not lapack.cholesky(torch.tensor([[1, 2], [2, 1]], dtype=dtype))
    assert not lapack.cholesky(torch.full((3, 3), torch.nan, dtype=dtype))


def test_other_threads_run_meanwhile() -> None:
    """A call that held the interpreter's lock would keep the counter still."""
    A, counted, over = definite(1500, torch.float64), 0, threading.Event()

    def call() -> None:
        lapack.product(A, A)
        over.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not over.is_set():
        counted += 1
    thread.join()
    assert counted > 1000
