"""Norm and rotation in one kernel: in Triton's interpreter, or on a GPU.

Held to float64, as in test_kernels.py; on the CPU the module does one after the other.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies, rotate
from rope_teach.checks import lay_out
from rope_teach.ops import cuda, norm
from rope_teach.ops.norm import BACKWARD, FORWARD, normalise_and_rotate
from tests.samples import both_pairings, each_layout, from_layout, to_layout

BACKEND = "inductor" if torch.cuda.is_available() else "aot_eager"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def kernels_on_the_cpu():
    """Without a GPU the operators launch their kernels, which are interpreted."""
    if DEVICE == "cuda":
        yield
        return
    library = torch.library.Library("rope_teach", "FRAGMENT")
    library.impl("normalise_and_rotate", norm.launch, "CPU")
    library.impl("normalise_and_rotate_back", norm.launch_back, "CPU")
    yield
    library._destroy()


def norms(head_dim=16, dtype=torch.float32, eps=(1e-5, None)):
    made = tuple(nn.RMSNorm(head_dim, e, dtype=dtype, device=DEVICE) for e in eps)
    for each in made:
        nn.init.normal_(each.weight, mean=1, std=0.2)
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


def fused(q, k, both, cos, sin, pairing="half", layout="bhsd"):
    return normalise_and_rotate(q, k, both, cos, sin, pairing, layout)


def in_steps(x, weight, norm, cos, sin, pairing):
    """What the kernel computes, in the precision of ``x``."""
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    return rotate(F.rms_norm(x, x.shape[-1:], weight, eps), cos, sin, pairing)


def error(got, expected):
    return (got.double() - expected).norm() / expected.norm()


@both_pairings
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", ["plain", "packed", "uneven", "rows of a sequence"])
def test_equals_the_norm_and_then_the_rotation(pairing, dtype, case, monkeypatch):
    monkeypatch.setattr(cuda, "LARGEST_ROW", 64)  # several programs a token
    monkeypatch.setattr(cuda, "_known_plan", cuda._make_plan)
    torch.manual_seed(0)
    q, k = tensors(dtype, heads=5 if case == "uneven" else 4)
    if case == "packed":
        q, k = torch.cat([q, k], dim=1).split([4, 2], dim=1)
    both = norms()
    cos, sin = (t[2:] for t in tables(5))
    if case == "rows of a sequence":
        cos, sin = (torch.stack([t, t.flip(0)])[:, None] for t in (cos, sin))
    rows = cos.double(), sin.double()
    q, k = q.requires_grad_(), k.requires_grad_()
    inputs = [q, k, both[0].weight, both[1].weight]
    turned = fused(q, k, both, cos, sin, pairing)
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


@both_pairings
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 8), (6, 3, 32), (3, 1, 64), (12, 4, 128)]
)
def test_heads_and_widths_of_any_size(pairing, heads, kv_heads, head_dim):
    q, k = tensors(seq=2, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    both, (cos, sin) = norms(head_dim), tables(2, head_dim)
    turned = fused(q, k, both, cos, sin, pairing)
    for got, x, each in zip(turned, (q, k), both, strict=True):
        weight = each.weight.double()
        wide = in_steps(x.double(), weight, each, cos, sin, pairing)
        assert error(got, wide) < 1e-6


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_a_call_like_the_one_before_finds_what_has_changed(layout):
    rope, both = RotaryEmbedding(16, layout=layout).to(DEVICE), norms()
    q, k = tensors()
    if layout == "bshd":
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    other, aside = norms(), norms()
    for each in aside:  # a weight that begins elsewhere in memory
        memory = torch.randn(17, device=DEVICE)
        each.weight = nn.Parameter(memory[1:])
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
    monkeypatch.setattr(norm, "TOKENS", 4)
    monkeypatch.setattr(cuda, "LARGEST_ROW", row)
    monkeypatch.setattr(cuda, "_known_plan", cuda._make_plan)
    torch.manual_seed(0)
    q, k = (x.requires_grad_() for x in tensors(batch=2, seq=11, heads=3, kv_heads=2))
    both = norms()
    weights = [norm.weight for norm in both]
    cos, sin = tables(11)
    turned = fused(q, k, both, cos, sin)
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

    together = curvature(fused(q, k, both, cos, sin))
    plain = curvature(
        [rotate(n(x), cos, sin, "half") for x, n in zip((q, k), both, strict=True)]
    )
    for got, expected in zip(together, plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_operators_are_registered_in_full():
    q, k = tensors(seq=2)
    weights = [each.weight.detach() for each in norms()]
    arguments = (q, k, *weights, *tables(2), 1e-6, 1e-5, "half", "bhsd")
    checks = ("test_schema", "test_faketensor")  # gradients are the Function's
    for operator, given in ((FORWARD, arguments), (BACKWARD, (k, q, *arguments))):
        if operator is BACKWARD:
            given = torch.randn_like(q), torch.randn_like(k), *arguments
        verdicts = torch.library.opcheck(operator, given, test_utils=checks)
        assert set(verdicts.values()) == {"SUCCESS"}


@both_pairings
@each_layout
@pytest.mark.parametrize("batch", [True, False])
def test_kernels_equal_the_steps_in_every_layout(pairing, layout, batch):
    """The two kernels against what derivatives of derivatives and vmap follow."""
    torch.manual_seed(0)
    q, k = tensors()
    grads = [torch.randn_like(x) for x in (q, k)]
    places = torch.tensor([[3, 0, 2], [70, -4, 9]], device=DEVICE)
    cos, sin = cos_sin(places if batch else places[0], inverse_frequencies(16))
    given = [to_layout(x, layout) for x in (*grads, q, k)]
    if not batch:
        given = [x[:, 0] if layout == "sbhd" else x[0] for x in given]
    rows = [lay_out(t, layout, given[0].ndim) for t in (cos, sin)]
    weights = [each.weight.detach() for each in norms()]
    how = (1e-5, 1e-3, pairing, layout)
    for kernel, steps, inputs in (
        (norm.launch, norm.in_steps, given[2:]),
        (norm.launch_back, norm.back_in_steps, given),
    ):
        got = kernel(*inputs, *weights, *rows, *how)
        expected = steps(*inputs, *weights, *rows, *how)
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)
    if batch:
        flat = F.rms_norm(q, (16,), weights[0], 1e-5)
        exact = rotate(flat, cos, sin, pairing)
        turned = norm.launch(*given[2:], *weights, *rows, *how)[0]
        assert torch.allclose(from_layout(turned, layout), exact, atol=1e-5)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_stored_in_another_order(create_graph):
    """What follows may hand back gradients with any strides, 0 among them."""
    torch.manual_seed(0)
    q, k = (x.requires_grad_() for x in tensors())
    both, (cos, sin) = norms(), tables(3)
    inputs = [q, k, *(each.weight for each in both)]
    plain = [
        rotate(each(x), cos, sin, "half") for each, x in zip(both, (q, k), strict=True)
    ]
    turned = fused(q, k, both, cos, sin)
    for grads in (
        [torch.ones((), device=DEVICE).expand_as(x) for x in turned],
        [torch.randn(x.shape[::-1], device=DEVICE).permute(3, 2, 1, 0) for x in turned],
    ):
        got = torch.autograd.grad(
            turned, inputs, grads, retain_graph=True, create_graph=create_graph
        )
        exact = torch.autograd.grad(plain, inputs, grads, retain_graph=True)
        for one, other in zip(got, exact, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


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
    turned = fused(q, k, (norm, norm), *at_zero)
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
    together = slopes(fused(q, k, both, cos, sin, "interleaved"))
    plain = slopes([rotate(both[0](q), cos, sin), rotate(both[1](k), cos, sin)])
    for got, expected in zip(together, plain, strict=True):
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
        assert fused(q, k, both, cos, sin) is None
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert fused(q, k, norms(), cos, sin) is None
    hook.remove()
    assert fused(q, k, norms(), cos, sin) is not None
    partial = cos[:, :4], sin[:, :4]
    assert fused(q, k, norms(), *partial) is None
    learned = cos.clone().requires_grad_()  # the kernel gives tables no gradient
    assert fused(q, k, norms(), learned, sin) is None
    with torch.no_grad():
        assert fused(q, k, norms(), learned, sin) is not None
    wide = [x.double() for x in (q, k)]
    assert fused(*wide, norms(), cos, sin) is None
    narrow = tensors(head_dim=12)
    assert fused(*narrow, norms(12), *tables(3, 12)) is None
    both = norms()
    each = [t.expand(2, 2, 3, 8).contiguous() for t in (cos, sin)]
    assert fused(q[:, :2], k, both, *each) is None  # heads with their own frequencies
    assert fused(q, k[..., :2, :], both, cos, sin) is None  # another length
    assert fused(q[:, :, :0], k[:, :, :0], both, cos[:0], sin[:0]) is None


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU takes the steps: test_roads.py")
def test_the_module_takes_the_kernel_where_it_serves(monkeypatch):
    launches = []
    monkeypatch.setattr(norm, "FORWARD", lambda *a: launches.append(a) or FORWARD(*a))
    rope, both, (q, k) = RotaryEmbedding(16).to(DEVICE), norms(), tensors()
    each = torch.tensor([[4, 9, 2], [0, 0, 7]], device=DEVICE)
    tables = rope.tables(each)
    ways = {"start": 7}, {"positions": each}, {"tables": tables}
    for count, way in enumerate(ways, start=1):
        got = rope(q, k, norms=both, **way)
        assert len(launches) == count
        expected = rope(both[0](q), both[1](k), **way)
        for one, other in zip(got, expected, strict=True):
            assert error(one, other.double()) < 1e-6
    out = torch.empty_like(q), torch.empty_like(k)
    pair = {"positions": (each, each)}
    with torch.no_grad():
        rope(q, k, norms=both, out=out)  # into given memory: in steps
        rope(q, k, norms=both, **pair)
        RotaryEmbedding(16, rotary_dim=8).to(DEVICE)(q, k, norms=both)
    assert len(launches) == len(ways)


@both_pairings
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
