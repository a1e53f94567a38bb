"""Fixtures of more than one file of tests."""

import pytest

from elman import _kernels


@pytest.fixture(params=["c", "avx2", "avx512", "neon"])
def isa(request):
    """Every instruction set in turn, for this test alone."""
    if request.param not in _kernels.isa_usable():
        pytest.skip(f"{request.param} is not usable on this machine")
    before = _kernels.isa()
    _kernels.select_isa(request.param)
    yield request.param
    _kernels.select_isa(before)
