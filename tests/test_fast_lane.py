"""What a module keeps of one call to serve the next, on a pretended GPU.

Tensors say that they are on CUDA, the interpreter is the compiler, and what it compiled
is started with addresses, as on a GPU. All Python in between is the real one.
"""

import copy
import ctypes
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("test_gpu.py asks the real one", allow_module_level=True)

from rope_teach import RotaryEmbedding, fused_norm, kernels, rotate_matrix
from rope_teach.tables import angles

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1"
)


class Compiled:
    """Starts an interpreted kernel as Triton starts a compiled one."""

    function = packed_metadata = None

    def __init__(self, kernel, dtypes, starts):
        self.kernel, self.dtypes, self.starts = kernel, dtypes, starts

    def run(self, x, y, z, stream, function, metadata, a, b, c, *arguments):
        self.starts.append("again")
        places = arguments[: len(self.dtypes)]
        memory = [
            torch.frombuffer((ctypes.c_byte * 8).from_address(place), dtype=dtype)
            for place, dtype in zip(places, self.dtypes, strict=True)
        ]
        self.kernel[(x, y, z)](*memory, *arguments[len(places) :])


class Kernel:
    """An interpreted kernel whose launch returns what it would have compiled."""

    def __init__(self, kernel, starts):
        self.kernel, self.starts = kernel, starts

    def __getitem__(self, grid):
        def start(*arguments, **choices):
            self.starts.append("first")
            self.kernel[grid](*arguments, **choices)
            dtypes = [x.dtype for x in arguments if isinstance(x, torch.Tensor)]
            return Compiled(self.kernel, dtypes, self.starts)

        return start


@pytest.fixture
def starts(monkeypatch):
    """The pretence, and how kernels were started under it."""
    starts: list[str] = []

    def empty(shape, strides, dtype):  # what is not written shows
        return torch.empty_strided(shape, strides, dtype=dtype).fill_(torch.nan)

    monkeypatch.setattr(kernels, "INTERPRETED", False)
    monkeypatch.setattr(kernels, "_empty", empty)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: True))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: None, raising=False)
    stream = "_cuda_getCurrentRawStream"
    monkeypatch.setattr(torch._C, stream, lambda device: 0, raising=False)
    for module, name in ((kernels, "_rotate_token"), (fused_norm, "_forward")):
        monkeypatch.setattr(module, name, Kernel(getattr(module, name), starts))
    kernels._LAUNCHES.clear()
    yield starts
    kernels._LAUNCHES.clear()


def tensors(seq=2, layout="bhsd", dtype=torch.float32):
    made = (torch.randn(2, seq, heads, 16).to(dtype) for heads in (4, 2))
    return [x if layout == "bshd" else x.transpose(1, 2) for x in made]


def assert_turned(turned, given, rope, start=0):
    for got, x in zip(turned, given, strict=True):
        if rope.layout == "bshd":
            got, x = got.transpose(1, 2), x.transpose(1, 2)
        angle = angles(start + torch.arange(x.shape[2]), rope.inv_freq)
        exact = rotate_matrix(x.detach().double(), angle, rope.pairing)
        assert torch.allclose(got.double(), exact, atol=1e-5)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_a_decode_loop_asks_once(starts, layout, pairing):
    rope = RotaryEmbedding(16, layout=layout, pairing=pairing)
    for start in (0, 1, 700, 2047):
        q, k = tensors(seq=1, layout=layout)
        assert_turned(rope(q, k, start=start), (q, k), rope, start)
    assert starts == ["first", "again", "again", "again"]
    assert_turned(rope(q, k, start=2048), (q, k), rope, 2048)  # a longer table


def test_rows_at_other_addresses_get_a_launch_of_their_own(starts):
    """Rows of 12 bytes: where one begins decides how wide a load may be."""
    rope = RotaryEmbedding(16, rotary_dim=6)
    for start in (0, 1, 2, 3, 4, 9):
        q, k = tensors()
        turned = [x[..., :6] for x in rope(q, k, start=start)]
        assert_turned(turned, [x[..., :6] for x in (q, k)], rope, start)
    assert len({key[-2:] for key in kernels._LAUNCHES}) == 4
    assert starts == ["first"] * 4 + ["again"] * 2


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_what_differs_from_the_call_before_is_served_right(starts, layout):
    rope = RotaryEmbedding(16, layout=layout)
    shape = (2, 4, 3, 16) if layout == "bhsd" else (2, 3, 4, 16)
    memory, count = torch.randn(3 * 2 * 4 * 3 * 16 + 8), 2 * 4 * 3 * 16
    packed = memory[: 3 * count].view(2, -1, 3 * 16)
    given = [
        memory[:count].view(shape),
        memory[count : 2 * count].view(shape),
        memory[1 : 1 + count].view(shape),  # begins elsewhere
        memory[:count].view(2, shape[2], shape[1], 16).transpose(1, 2),  # another order
        packed[..., 16:32].view(shape),  # a slice, as of packed q, k and v
        memory[:16].expand(shape),  # many in one place
        memory[: 2 * count].view(*shape[:3], 32)[..., ::2],  # features apart
        memory[:count].view(shape).clone().requires_grad_(),
    ]
    for start, x in enumerate([*given, *reversed(given)]):
        turned = rope(x, x, start=start)
        assert turned[0].requires_grad == x.requires_grad
        assert_turned(turned, (x, x), rope, start)
    assert "again" in starts


def test_norms_are_no_part_of_what_is_kept(starts):
    rope = RotaryEmbedding(16)
    layers = [tuple(nn.RMSNorm(16) for _ in range(2)) for _ in range(2)]
    for norm in (norm for both in layers for norm in both):
        nn.init.normal_(norm.weight, 1, 0.2)
    with torch.no_grad():
        for start in range(3):
            for both in (None, *layers):
                q, k = tensors()
                turned = rope(q, k, start=start, norms=both)
                given = (both[0](q), both[1](k)) if both else (q, k)
                assert_turned(turned, given, rope, start)
    assert starts.count("first") == 2  # with norms and without
    assert starts.count("again") == 7


def test_transforms_and_gradients_after_a_plain_call(starts):
    rope, (q, k) = RotaryEmbedding(16), [x.contiguous() for x in tensors()]
    turned = rope(q, k)
    moved = torch.func.vmap(rope)(torch.stack([q, k.repeat(1, 2, 1, 1)]),
                                  torch.stack([k, k]))  # fmt: skip
    assert torch.allclose(moved[0][0], turned[0], atol=1e-6)
    tangent = torch.func.jvp(rope, (q, k), (q, k))[1]
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(tangent, turned, strict=True)
    )
    leaf = q.clone().requires_grad_()
    (slope,) = torch.autograd.grad(rope(leaf, k)[0].pow(2).sum(), leaf)
    assert torch.allclose(slope, 2 * q, atol=1e-5)  # a rotation keeps lengths


def test_copies_and_other_modules_begin_anew(starts):
    rope, (q, k) = RotaryEmbedding(16), tensors()
    turned = rope(q, k)
    for other in (copy.deepcopy(rope), pickle.loads(pickle.dumps(rope))):
        assert all(torch.equal(a, b) for a, b in zip(other(q, k), turned, strict=True))
    faster = RotaryEmbedding(16, base=100.0)
    assert_turned(faster(q, k), (q, k), faster)
    assert_turned(rope(q, k), (q, k), rope)


def test_launches_are_not_kept_for_ever(starts, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_LAUNCHES", 3)
    rope = RotaryEmbedding(16)
    for seq in (1, 2, 3, 4, 5, 1):
        q, k = tensors(seq)
        assert_turned(rope(q, k), (q, k), rope)
        assert len(kernels._LAUNCHES) <= 3
