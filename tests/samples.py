"""What tests of the rotation share: random inputs, the oracle, a GPU's roads."""

import contextlib
import unittest.mock
import warnings

import pytest
import torch

from rope_teach import angles, inverse_frequencies, ops, rotate_matrix

F64 = torch.float64
PAIRINGS = ("interleaved", "half")
LAYOUTS = ("bhsd", "bshd", "sbhd")
both_pairings = pytest.mark.parametrize("pairing", PAIRINGS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def sample(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)


def queries_and_keys(batch=2, heads=4, kv_heads=2, seq=5, head_dim=8, **options):
    """Distinct random q and k, ``(batch, heads, seq, head_dim)``."""
    q = sample(batch, heads, seq, head_dim, seed=1, **options)
    return q, sample(batch, kv_heads, seq, head_dim, seed=2, **options)


def to_layout(x, layout):
    """View ``(batch, heads, seq, head_dim)`` in another order of axes."""
    order = {"bhsd": (0, 1, 2, 3), "bshd": (0, 2, 1, 3), "sbhd": (2, 0, 1, 3)}
    return x.permute(order[layout])


def from_layout(x, layout):
    """The way back from :func:`to_layout`."""
    order = {"bhsd": (0, 1, 2, 3), "bshd": (0, 2, 1, 3), "sbhd": (1, 2, 0, 3)}
    return x.permute(order[layout])


def oracle(x, positions, pairing="interleaved", rotary_dim=None, base=10_000.0):
    """``x`` ``(batch, heads, seq, d)`` by full matrices, in float64, no cache."""
    inv_freq = inverse_frequencies(rotary_dim or x.shape[-1], base)
    angle = angles(positions.expand(x.shape[0], x.shape[2]), inv_freq)
    return rotate_matrix(x.double(), angle.unsqueeze(1), pairing)


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)


def all_close(got, expected, atol=1e-6):
    for one, other in zip(got, expected, strict=True):
        close(one, other, atol)


@contextlib.contextmanager
def as_on_cuda():
    """Let the operators take on a CPU the roads that they take on CUDA.

    The kernels then run in Triton's interpreter, and all above them as on a GPU.
    """

    def write(*arguments, out):
        ops._on_cuda(*arguments, out=out)

    library = torch.library.Library("rope_teach", "FRAGMENT")
    roads = {"rotate": ops._on_cuda, "rotate.out": write, "cos_sin": ops._rows_on_cuda}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another road is there already
        for name, road in roads.items():
            library.impl(name, road, "CPU", allow_override=True)
    try:
        with unittest.mock.patch.object(ops, "_are_on_cpu", lambda *_: False):
            yield
    finally:
        library._destroy()
