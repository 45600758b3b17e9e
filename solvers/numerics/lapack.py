"""Dense symmetric linear algebra of one thread's row: scipy's BLAS and LAPACK on torch's memory, in place.

scipy's own wrappers hold the interpreter's lock, so that rows in parallel would wait for one another; torch's come from
another library, which is slower on some machines. Called here by address, as compilers call them.

Matrices are contiguous, row by row, float32 or float64, on the CPU, and square but where said. Column by column, as
LAPACK sees them, they are transposed: its upper triangles are our lower ones.
"""

from __future__ import annotations

import ctypes

import torch
from numba.extending import get_cython_function_address

_LETTER = {torch.float32: "s", torch.float64: "d"}
_NUMBER = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def _routines(library: str, name: str, arguments: int) -> dict[torch.dtype, ctypes._FuncPointer]:
    """A routine for both precisions; all arguments are addresses, and calls let other threads run."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    module = f"scipy.linalg.cython_{library}"
    return {dtype: kind(get_cython_function_address(module, letter + name)) for dtype, letter in _LETTER.items()}


_gemm = _routines("blas", "gemm", 13)
_syrk = _routines("blas", "syrk", 10)
_trsm = _routines("blas", "trsm", 11)
_potrf = _routines("lapack", "potrf", 5)
_potri = _routines("lapack", "potri", 5)
_potrs = _routines("lapack", "potrs", 8)


def cholesky(A: torch.Tensor) -> bool:
    """Put the factor ``L`` of ``A = L Lᵀ`` into A's lower triangle, and leave the rest; False if A is not definite."""
    n, info = ctypes.c_int(len(A)), ctypes.c_int()
    _potrf[A.dtype](b"U", ctypes.byref(n), A.data_ptr(), ctypes.byref(n), ctypes.byref(info))
    return info.value == 0 and bool(A[-1, -1] > 0)  # some builds let NaN pass, which always reaches the last row


def solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``A⁻¹ right`` for a vector, by what :func:`cholesky` left of A."""
    x = right.clone()
    n, one, info = ctypes.c_int(len(factor)), ctypes.c_int(1), ctypes.c_int()
    size = ctypes.byref(n)
    routine = _potrs[factor.dtype]
    routine(b"U", size, ctypes.byref(one), factor.data_ptr(), size, x.data_ptr(), size, ctypes.byref(info))
    return x


def half(factor: torch.Tensor, right: torch.Tensor, back: bool = False) -> torch.Tensor:
    """``L⁻¹ x`` for each row ``x`` of ``right``, ``(any, n)``, in place, with ``L`` as :func:`cholesky` left it.

    ``back``: ``L⁻ᵀ x``, the other half of a solution.
    """
    number = _NUMBER[factor.dtype]
    n, many, one = ctypes.byref(ctypes.c_int(len(factor))), ctypes.byref(ctypes.c_int(len(right))), number(1)
    rest = (b"N" if back else b"T", b"N", n, many, ctypes.byref(one), factor.data_ptr(), n, right.data_ptr(), n)
    _trsm[factor.dtype](b"L", b"U", *rest)
    return right


def inverse(factor: torch.Tensor) -> torch.Tensor:
    """``A⁻¹``, all of it, by what :func:`cholesky` left of A, which is overwritten."""
    n, info = ctypes.c_int(len(factor)), ctypes.c_int()
    _potri[factor.dtype](b"U", ctypes.byref(n), factor.data_ptr(), ctypes.byref(n), ctypes.byref(info))
    return _whole(factor)


def product(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """``A B``, of any shapes."""
    out, number = A.new_empty(len(A), B.shape[1]), _NUMBER[A.dtype]
    m, k, n = (ctypes.byref(ctypes.c_int(size)) for size in (*A.shape, B.shape[1]))
    one, none = ctypes.byref(number(1)), ctypes.byref(number(0))
    _gemm[A.dtype](b"N", b"N", n, m, k, one, B.data_ptr(), n, A.data_ptr(), k, none, out.data_ptr(), n)
    return out


def gram(A: torch.Tensor, of_rows: bool = False) -> torch.Tensor:
    """``Aᵀ A`` of any ``A``, at half a product's price; ``of_rows``: ``A Aᵀ``."""
    (k, n), number = reversed(A.shape) if of_rows else A.shape, _NUMBER[A.dtype]
    out = A.new_empty(n, n)
    size, inner, stride = (ctypes.byref(ctypes.c_int(x)) for x in (n, k, A.shape[1]))
    one, none = ctypes.byref(number(1)), ctypes.byref(number(0))
    _syrk[A.dtype](b"U", b"T" if of_rows else b"N", size, inner, one, A.data_ptr(), stride, none, out.data_ptr(), size)
    return _whole(out)


def _whole(lower: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of a lower triangle, which is overwritten above."""
    lower.tril_()
    whole = lower + lower.mT
    whole.diagonal().mul_(0.5)
    return whole
