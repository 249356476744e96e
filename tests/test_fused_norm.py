"""Norm and rotation in one kernel: in Triton's interpreter, or on a GPU.

Held to float64, as in test_kernels.py; on the CPU the module does one after the other.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from rope_teach import (
    RotaryEmbedding,
    cos_sin,
    fused_norm,
    inverse_frequencies,
    kernels,
    rotate,
)
from rope_teach.fused_norm import normalise_and_rotate

BACKEND = "inductor" if torch.cuda.is_available() else "aot_eager"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = (
    pytest.mark.gpu
    if DEVICE == "cuda"
    else pytest.mark.skipif(not kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1")
)
PAIRINGS = ["interleaved", "half"]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


def norms(head_dim=16, dtype=torch.float32, eps=(1e-5, None)):
    made = tuple(nn.RMSNorm(head_dim, e, dtype=dtype, device=DEVICE) for e in eps)
    for norm in made:
        nn.init.normal_(norm.weight, mean=1, std=0.2)
    return made


def tensors(dtype=torch.float32, batch=2, seq=3, heads=4, kv_heads=2, head_dim=16):
    """q and k stored token by token, seen as (batch, heads, seq, head_dim)."""
    return [
        torch.randn(batch, seq, h, head_dim, device=DEVICE).to(dtype).transpose(1, 2)
        for h in (heads, kv_heads)
    ]


def tables(rows, head_dim=16):
    inv_freq = inverse_frequencies(head_dim, device=DEVICE)
    return cos_sin(torch.arange(rows, device=DEVICE), inv_freq)


def in_steps(x, weight, norm, cos, sin, pairing):
    """What the kernel computes, in the precision of ``x``."""
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    return rotate(F.rms_norm(x, x.shape[-1:], weight, eps), cos, sin, pairing)


def error(got, expected):
    return (got.double() - expected).norm() / expected.norm()


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", ["plain", "packed", "uneven", "rows of a sequence"])
def test_equals_the_norm_and_then_the_rotation(pairing, dtype, case, monkeypatch):
    monkeypatch.setattr(kernels, "LARGEST_ROW", 64)  # several programs a token
    torch.manual_seed(0)
    q, k = tensors(dtype, heads=5 if case == "uneven" else 4)
    if case == "packed":
        q, k = torch.cat([q, k], dim=1).split([4, 2], dim=1)
    both, first = norms(), 2
    cos, sin = tables(5)
    rows = cos[2:].double(), sin[2:].double()
    if case == "rows of a sequence":
        first = 0
        cos, sin = (torch.stack([t[:3], t[1:4]]) for t in (cos, sin))
        rows = cos[:, None].double(), sin[:, None].double()
    q, k = q.requires_grad_(), k.requires_grad_()
    inputs = [q, k, both[0].weight, both[1].weight]
    turned = normalise_and_rotate(q, k, both, cos, sin, pairing == "interleaved", first)
    grads = [torch.randn_like(x) for x in turned]
    got = torch.autograd.grad(turned, inputs, grads)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = [
        in_steps(x, weight, norm, *rows, pairing)
        for x, weight, norm in zip(wide[:2], wide[2:], both, strict=True)
    ]
    slopes = torch.autograd.grad(expected, wide, [x.double() for x in grads])
    for x, exact in zip((*turned, *got), (*expected, *slopes), strict=True):
        assert error(x, exact) < TOLERANCE[dtype]
    assert [x.dtype for x in turned] == [dtype] * 2
    assert turned[0].stride() == torch.empty_like(q).stride()


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 8), (6, 3, 32), (3, 1, 64), (12, 4, 128)]
)
def test_heads_and_widths_of_any_size(pairing, heads, kv_heads, head_dim):
    q, k = tensors(seq=2, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    both, (cos, sin) = norms(head_dim), tables(2, head_dim)
    turned = normalise_and_rotate(q, k, both, cos, sin, pairing == "interleaved")
    for got, x, norm in zip(turned, (q, k), both, strict=True):
        weight = norm.weight.double()
        wide = in_steps(x.double(), weight, norm, cos, sin, pairing)
        assert error(got, wide) < 1e-6


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_a_call_like_the_one_before_finds_what_has_changed(layout):
    rope, both = RotaryEmbedding(16, layout=layout).to(DEVICE), norms()
    q, k = tensors()
    if layout == "bshd":
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    other, aside = norms(), norms()
    for norm in aside:  # a weight that begins elsewhere in memory
        memory = torch.randn(17, device=DEVICE)
        norm.weight = nn.Parameter(memory[1:])
    for start, pair in enumerate([both, both, other, aside, both]):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                got = rope(q, k, start=start, norms=pair)
            assert got[0].requires_grad == gradients
            wide = [
                F.rms_norm(
                    x.double(), (16,), n.weight.double(),
                    torch.finfo(torch.float32).eps if n.eps is None else n.eps,
                )
                for x, n in zip((q, k), pair, strict=True)
            ]  # fmt: skip
            exact = rope(*wide, start=start)
            assert all(error(a, b) < 1e-6 for a, b in zip(got, exact, strict=True))
        both[0].weight.data.add_(0.5)  # as a step of training does


@pytest.mark.parametrize("row", [64, 2048])
def test_more_tokens_than_one_program_adds_up(row, monkeypatch):
    monkeypatch.setattr(fused_norm, "TOKENS", 4)
    monkeypatch.setattr(kernels, "LARGEST_ROW", row)
    torch.manual_seed(0)
    q, k = (x.requires_grad_() for x in tensors(batch=2, seq=11, heads=3, kv_heads=2))
    both = norms()
    weights = [norm.weight for norm in both]
    cos, sin = tables(11)
    turned = normalise_and_rotate(q, k, both, cos, sin, False)
    plain = [
        rotate(norm(x), cos, sin, "half") for norm, x in zip(both, (q, k), strict=True)
    ]
    grads = [torch.randn_like(x) for x in turned]
    for got, expected in zip(
        torch.autograd.grad(turned, weights, grads),
        torch.autograd.grad(plain, weights, grads),
        strict=True,
    ):
        assert torch.allclose(got, expected, atol=1e-5)


def test_second_derivatives():
    torch.manual_seed(0)
    q, k = (x.requires_grad_() for x in tensors(batch=1, seq=2))
    both = norms()
    inputs = [q, k, both[0].weight]  # the other weight is held fixed
    both[1].weight.requires_grad_(False)
    cos, sin = tables(2)

    def curvature(turned):
        energy = sum(x.pow(3).sum() for x in turned)
        slopes = torch.autograd.grad(energy, inputs, create_graph=True)
        return torch.autograd.grad(sum(x.pow(2).sum() for x in slopes), inputs)

    fused = curvature(normalise_and_rotate(q, k, both, cos, sin, True))
    plain = curvature(
        [rotate(n(x), cos, sin) for x, n in zip((q, k), both, strict=True)]
    )
    for got, expected in zip(fused, plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_operators_are_registered_in_full():
    q, k = (x.requires_grad_() for x in tensors(seq=2))
    weights = [norm.weight for norm in norms()]
    arguments = (q, k, *weights, *tables(2), 1e-6, 1e-5, True, 0)
    name = torch.ops.rope_teach.normalise_and_rotate.default
    assert set(torch.library.opcheck(name, arguments).values()) == {"SUCCESS"}
    back = torch.ops.rope_teach.normalise_and_rotate_back.default
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    verdicts = torch.library.opcheck(back, (plain[0], plain[1], *plain))
    assert set(verdicts.values()) == {"SUCCESS"}


def test_compiles_as_one_graph():
    rope, both = RotaryEmbedding(16).to(DEVICE), norms()
    q, k = (x.requires_grad_() for x in tensors())
    inputs = [q, k, both[0].weight, both[1].weight]

    def step(q, k):
        turned = rope(q, k, norms=both)
        return turned[0].pow(3).sum() + turned[1].pow(2).sum()

    compiled = torch.compile(step, fullgraph=True, backend=BACKEND)
    expected = torch.autograd.grad(step(q, k), inputs)
    slopes = torch.autograd.grad(compiled(q, k), inputs)
    for got, exact in zip(slopes, expected, strict=True):
        assert torch.allclose(got, exact, atol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_default_eps_is_that_of_torch(dtype):
    """It matters where features are small: torch takes float32's in 16 bits as well."""
    norm = nn.RMSNorm(16, device=DEVICE, dtype=dtype)
    q, k = (0.02 * x for x in tensors(dtype))
    at_zero = torch.ones(3, 8, device=DEVICE), torch.zeros(3, 8, device=DEVICE)
    turned = normalise_and_rotate(q, k, (norm, norm), *at_zero, True)
    for got, x in zip(turned, (q, k), strict=True):
        assert error(got, norm(x).double()) < 1e-2  # another eps: more than 0.1


@pytest.mark.parametrize("case", ["q is k", "one norm", "k made from q", "k alone"])
def test_derivatives_that_meet_in_one_input(case):
    """With create_graph each way to an input counts once."""
    torch.manual_seed(0)
    q, _ = tensors(batch=1, seq=2, kv_heads=4)
    q.requires_grad_(case != "k alone")
    both, (cos, sin) = norms(), tables(2)
    if case == "one norm":
        both = both[0], both[0]
    k = {"q is k": q, "k made from q": q * 2}.get(case)
    if k is None:
        k = torch.randn_like(q).requires_grad_()
    inputs = [k] if case == "k alone" else [q, both[0].weight]

    def slopes(turned):
        energy = turned[1].pow(3).sum()
        energy = energy if case == "k alone" else energy + turned[0].pow(2).sum()
        first = torch.autograd.grad(energy, inputs, create_graph=True)
        curve = sum(x.pow(2).sum() for x in first)
        return [*first, *torch.autograd.grad(curve, inputs, retain_graph=True)]

    if case == "k alone":
        for norm in both:
            norm.weight.requires_grad_(False)
    fused = slopes(normalise_and_rotate(q, k, both, cos, sin, True))
    plain = slopes([rotate(both[0](q), cos, sin), rotate(both[1](k), cos, sin)])
    for got, expected in zip(fused, plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_what_the_kernel_cannot_do_is_left_to_steps():
    q, k = tensors()
    cos, sin = tables(3)
    heard, patched, emptied = norms(), norms(), norms()
    heard[0].register_forward_hook(lambda *_: None)
    patched[0].forward = lambda x: x * 0
    emptied[1].weight.data = torch.empty(0, device=DEVICE)
    weightless = nn.RMSNorm(16, elementwise_affine=False), norms()[1]
    others = nn.LayerNorm(16), nn.LayerNorm(16)
    for both in (heard, patched, emptied, weightless, others):
        assert normalise_and_rotate(q, k, both, cos, sin, True) is None
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert normalise_and_rotate(q, k, norms(), cos, sin, True) is None
    hook.remove()
    assert normalise_and_rotate(q, k, norms(), cos, sin, True) is not None
    partial = cos[:, :4], sin[:, :4]
    assert normalise_and_rotate(q, k, norms(), *partial, True) is None
    wide = [x.double() for x in (q, k)]
    assert normalise_and_rotate(*wide, norms(), cos, sin, True) is None
    narrow = tensors(head_dim=12)
    assert normalise_and_rotate(*narrow, norms(12), *tables(3, 12), True) is None


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("options", [{}, {"rotary_dim": 8}, {"xpos_scale_base": 512}])
def test_the_module_normalises_first(pairing, layout, options):
    torch.manual_seed(0)
    rope = RotaryEmbedding(16, pairing=pairing, layout=layout, **options).to(DEVICE)
    q, k = tensors()
    if layout == "bshd":
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    both = norms()
    for arguments in (
        {},
        {"start": 7},
        {"start": torch.tensor([3, 0], device=DEVICE)},
        {"positions": torch.tensor([4, 9, 2], device=DEVICE)},
        {"pad_len": torch.tensor([0, 1], device=DEVICE)},
        {"positions": (torch.arange(3, device=DEVICE),) * 2},
    ):
        got = rope(q, k, norms=both, **arguments)
        expected = rope(both[0](q), both[1](k), **arguments)
        for x, exact in zip(got, expected, strict=True):
            assert torch.allclose(x, exact, atol=1e-5)


def test_a_norm_of_another_dtype_changes_no_dtype():
    class Wide(nn.Module):  # as Hugging Face's, whose weight decides
        def forward(self, x):
            return x.float()

    rope, (q, k) = RotaryEmbedding(16).to(DEVICE), tensors(torch.bfloat16)
    for positions in (None, (torch.arange(3, device=DEVICE),) * 2):
        turned = rope(q, k, positions, norms=(Wide(), Wide()))
        assert [x.dtype for x in turned] == [torch.bfloat16] * 2


def test_layers_with_norms_of_their_own_share_a_module():
    rope, (q, k) = RotaryEmbedding(16).to(DEVICE), tensors()
    layers = [norms() for _ in range(3)]
    for start in range(3):
        for both in layers:
            got = rope(q, k, start=start, norms=both)
            plain = rope(both[0](q), both[1](k), start=start)
            assert all(error(a, b) < 1e-6 for a, b in zip(got, plain, strict=True))


def test_the_module_refuses_what_is_no_pair_of_modules():
    rope, (q, k) = RotaryEmbedding(16).to(DEVICE), tensors()
    for wrong in (norms()[0], norms()[:1], (norms()[0].weight, norms()[1].weight)):
        with pytest.raises(TypeError, match="norms must be a pair of modules"):
            rope(q, k, norms=wrong)
