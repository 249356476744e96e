"""The CUDA path on a real GPU: `pytest -m gpu`. Skipped where there is none."""

import functools
import io
import itertools
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rope_teach import (
    RotaryEmbedding,
    angles,
    cos_sin,
    inverse_frequencies,
    laws,
    ops,
    rotate,
    rotate_matrix,
)

if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

from rope_teach.frequencies import yarn
from rope_teach.ops import cuda
from tests.samples import LAYOUTS, PAIRINGS, from_layout, to_layout

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tensors(batch, seq, heads, kv_heads, head_dim, dtype=torch.float32):
    """q and k stored token by token, seen as (batch, heads, seq, head_dim)."""
    return [
        torch.randn(batch, seq, h, head_dim, device="cuda").to(dtype).transpose(1, 2)
        for h in (heads, kv_heads)
    ]


def launched(call):
    """Names of what a call starts on the GPU, after a call that compiles it."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        call()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_gpu]


def compiled_forms(kernel):
    """How many forms of a kernel Triton has compiled on this device."""
    return len(kernel.device_caches[torch.cuda.current_device()][0])


def assert_one_rounding(got, x, rope, positions):
    """``got`` is the float64 rotation of ``x``, rounded once to its dtype."""
    expected = rotate_matrix(
        x.double(), angles(positions, rope.inv_freq.cuda()), rope.pairing
    )
    assert got.dtype == x.dtype and got.shape == x.shape
    spacing = torch.finfo(x.dtype).eps * expected.abs().clamp(min=1e-3)
    # Half a unit in the last place; float32 arithmetic adds a few of its own units.
    slack = 2**-21 * x.double().norm(dim=-1, keepdim=True)
    assert ((got.double() - expected).abs() <= 0.5 * spacing + slack).all()


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotates_with_one_rounding(pairing, dtype, layout):
    q, k = tensors(2, 33, 8, 2, 64, dtype)
    rope = RotaryEmbedding(64, pairing=pairing, layout=layout).cuda()
    given = [to_layout(x, layout) for x in (q, k)]
    for got, x in zip(rope(*given, start=7), (q, k), strict=True):
        got = from_layout(got, layout)
        assert got.stride() == x.stride()
        assert_one_rounding(got, x, rope, torch.arange(7, 40, device="cuda"))


@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(seed):
    pick = random.Random(seed)
    head_dim = pick.randrange(2, 161, 2)
    kv_heads = pick.randint(1, 9)
    q, k = tensors(
        pick.randint(1, 4),
        pick.choice([1, 2, 17, 130, 700]),
        kv_heads * pick.randint(1, 5),
        kv_heads,
        head_dim,
        pick.choice(DTYPES),
    )
    if pick.random() < 0.5:
        q, k = q.contiguous(), k.contiguous()
    rope = RotaryEmbedding(
        head_dim,
        rotary_dim=pick.randrange(2, head_dim + 1, 2),
        pairing=pick.choice(PAIRINGS),
    ).cuda()
    seq = q.shape[2]
    positions = torch.randint(-50, 100_000, (len(q), seq), device="cuda")
    for got, x in zip(rope(q, k, positions), (q, k), strict=True):
        r = rope.rotary_dim
        assert torch.equal(got[..., r:], x[..., r:])
        for row in range(len(q)):
            assert_one_rounding(
                got[row, ..., :r], x[row, ..., :r], rope, positions[row]
            )


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_gradient_and_double_backward(pairing):
    q, k = (x.requires_grad_() for x in tensors(2, 5, 4, 2, 16))
    rope = RotaryEmbedding(16, pairing=pairing).cuda()
    on_cpu = RotaryEmbedding(16, pairing=pairing)
    seconds = []
    for module, device in ((rope, "cuda"), (on_cpu, "cpu")):
        a, b = (x.detach().to(device).requires_grad_() for x in (q, k))
        turned = module(a, b)
        loss = sum((x**3).sum() for x in turned)
        grads = torch.autograd.grad(loss, (a, b), create_graph=True)
        more = torch.autograd.grad(sum(g.sum() for g in grads), (a, b))
        seconds.append([x.detach().cpu() for x in (*grads, *more)])
    for got, expected in zip(*seconds, strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


def test_obeys_the_laws():
    for pairing in PAIRINGS:
        rope = RotaryEmbedding(8, pairing=pairing).cuda()
        laws.check_all(
            lambda x, p, rope=rope: rope.rotate(x.float().cuda()[None, None], p.cuda())[
                0, 0
            ].cpu()
        )


def test_more_elements_than_32_bits_count():
    seq = 2**31 // (16 * 128) + 64
    q = torch.zeros(1, 16, seq, 128, device="cuda", dtype=torch.float16)
    q[:, :, -64:] = torch.randn(1, 16, 64, 128, device="cuda")
    assert q.numel() > 2**31
    rope = RotaryEmbedding(128, pairing="half").cuda()
    got = rope.rotate(q)
    last = torch.arange(seq - 64, seq, device="cuda")
    assert_one_rounding(got[:, :, -64:], q[:, :, -64:], rope, last)
    assert not got[:, :, :-64].any()


def test_heads_that_lie_2_31_elements_apart():
    """Offsets of heads are counted in 64 bits, too: q stored head by head."""
    seq = 2**31 // (31 * 128) + 64
    q = torch.zeros(1, 32, seq, 128, device="cuda", dtype=torch.float16)
    q[:, -1, -64:] = torch.randn(1, 64, 128, device="cuda")
    assert 31 * q.stride(1) > 2**31
    rope = RotaryEmbedding(128).cuda()
    got = rope.rotate(q)
    last = torch.arange(seq - 64, seq, device="cuda")
    assert_one_rounding(got[:, -1:, -64:], q[:, -1:, -64:], rope, last)


def test_positions_of_ten_million():
    q, k = tensors(1, 4, 2, 2, 64)
    rope = RotaryEmbedding(64).cuda()
    for got, x in zip(rope(q, k, start=10_000_000), (q, k), strict=True):
        assert_one_rounding(got, x, rope, 10_000_000 + torch.arange(4, device="cuda"))


def test_no_autograd_node_where_nothing_needs_a_gradient():
    q, k = tensors(1, 4, 2, 2, 64)
    assert RotaryEmbedding(64).cuda()(q, k)[0].grad_fn is None


EACH = [[4, 0, 1, 9, 2], [7, 7, 0, -3, 1_000_000]]
WAYS = {
    "from zero": ({}, 1),
    "start": ({"start": 7}, 1),
    "past every table": ({"start": 9_999_999}, None),
    "start of each": ({"start": torch.tensor([3, 50])}, 2),
    "left padding": ({"pad_len": torch.tensor([0, 2])}, 2),
    "padding and start": ({"pad_len": torch.tensor([0, 2]), "start": 40}, 2),
    "a row for each": ({"positions": torch.tensor(EACH)}, 2),
    "int32": ({"positions": torch.tensor(EACH, dtype=torch.int32)}, 2),
    "fractions": ({"positions": torch.tensor(EACH) / 4}, 2),
}


def moved(arguments):
    there = {n: x.cuda() for n, x in arguments.items() if isinstance(x, torch.Tensor)}
    return {**arguments, **there}


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("way", WAYS)
def test_positions_of_every_kind_take_few_launches_and_no_wait(way, pairing):
    given, launches = WAYS[way]
    q, k = tensors(2, 5, 4, 2, 64)
    on_cpu = RotaryEmbedding(64, pairing=pairing)(q.cpu(), k.cpu(), **given)
    rope, arguments = RotaryEmbedding(64, pairing=pairing).cuda(), moved(given)
    for got, expected in zip(rope(q, k, **arguments), on_cpu, strict=True):
        assert torch.allclose(got.cpu(), expected, atol=1e-5)
    names = launched(lambda: rope(q, k, **arguments))
    assert launches in (None, len(names)), names
    assert sum("_rotate_token" in name for name in names) == 1
    if launches == 2:
        assert sum("_write_rows" in name for name in names) == 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        rope(q, k, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_one_launch_each_way(pairing):
    """With a gradient, with ready tables, for one tensor, and into given memory."""
    rope = RotaryEmbedding(64, pairing=pairing).cuda()
    q, k = tensors(2, 5, 4, 2, 64)
    tables = rope.tables(torch.tensor(EACH, device="cuda"))
    cache = torch.zeros(2, 2, 9, 64, device="cuda")
    out = torch.empty_like(q), cache[:, :, 2:7]
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    grads = [torch.randn_like(x) for x in leaves]
    alone = rope.rotate(leaves[0])
    both = rope(*leaves)
    calls = {
        "ready tables": lambda: rope(q, k, tables=tables),
        "one tensor": lambda: rope.rotate(q),
        "into a cache": lambda: rope(q, k, out=out),
        "there, with a gradient": lambda: rope(*leaves),
        "back": lambda: torch.autograd.grad(both, leaves, grads, retain_graph=True),
        "back of one": lambda: torch.autograd.grad(
            alone, leaves[0], grads[0], retain_graph=True
        ),
    }
    for name, call in calls.items():
        names = launched(call)
        assert len(names) == 1 and "_rotate_token" in names[0], (name, names)
    assert torch.equal(cache[:, :, 2:7], rope(q, k)[1])
    norms = [torch.nn.RMSNorm(64, device="cuda") for _ in range(2)]
    with torch.no_grad():
        names = launched(lambda: rope(q, k, norms=norms))
    assert len(names) == 1 and "_forward" in names[0], names


def test_rows_of_any_position_are_rounded_once():
    inv_freq = inverse_frequencies(128, device="cuda")
    for begin in (0, 10**5, 10**7, 2**31, -(10**6)):
        positions = torch.arange(begin, begin + 512, device="cuda")
        angle = angles(positions, inv_freq)
        exact = torch.stack([angle.cos(), angle.sin()], dim=-2)
        error = (ops.cos_sin(positions, inv_freq).double() - exact).abs()
        assert (error <= 2**-24 * exact.abs() + 2e-9).all()


def test_a_decode_loop_compiles_once_and_never_waits():
    q, k = tensors(4, 1, 8, 2, 64, torch.bfloat16)
    rope = RotaryEmbedding(64).cuda()
    starts = torch.zeros(4, dtype=torch.long, device="cuda")
    rope(q, k, start=0)
    rope(q, k, start=starts)
    before = [compiled_forms(x) for x in (cuda._rotate_token, cuda._write_rows)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for start in range(1, 400):
            rope(q, k, start=start)
            rope(q, k, start=starts)
            starts += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = [compiled_forms(x) for x in (cuda._rotate_token, cuda._write_rows)]
    assert after == before


def test_prompts_of_any_length_compile_few_kernels():
    """Numbers that grow with the prompt are arguments, not constants."""
    rope = RotaryEmbedding(48).cuda()
    x = torch.randn(1, 4, 1, 48, device="cuda")
    rope(x, x, torch.arange(1, device="cuda"))
    kernels = cuda._rotate_token, cuda._write_rows
    before = [compiled_forms(kernel) for kernel in kernels]
    for n in range(1, 50):
        for shape in ((1, n, 4, 48), (n, 1, 4, 48), (3, n, 4, 48)):
            x = torch.randn(shape, device="cuda").transpose(1, 2)
            for y in (x, x.contiguous(), x[:, :, -1:], x.contiguous()[:, :, -1:]):
                positions = torch.arange(n, n + y.shape[2], device="cuda")
                for got in (rope(y, y[:, :1], start=n), rope(y, y[:, :1], positions)):
                    assert_one_rounding(got[0], y, rope, positions)
    turns, rows = (
        compiled_forms(kernel) - count
        for kernel, count in zip(kernels, before, strict=True)
    )
    assert turns <= 24 and rows <= 4  # by what is divisible by 16, and is 1


@pytest.mark.parametrize("rotary_dim", [6, 10, 34])
def test_rows_that_no_wide_load_may_begin_with(rotary_dim):
    """Rows of these tables begin at addresses that are no multiple of 16."""
    rope = RotaryEmbedding(40, rotary_dim=rotary_dim).cuda()
    for start in (*range(9), *reversed(range(9))):
        q, k = tensors(2, 3, 4, 2, 40)
        positions = torch.arange(start, start + 3, device="cuda")
        for got, x in zip(rope(q, k, start=start), (q, k), strict=True):
            got, x = got[..., :rotary_dim], x[..., :rotary_dim]
            assert_one_rounding(got, x, rope, positions)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_tensors_that_begin_anywhere(pairing):
    """A launch that was planned for aligned addresses must not serve other ones."""
    memory = torch.randn(4 * 5 * 64 + 3, device="cuda", dtype=torch.bfloat16)
    table = torch.randn(2 * 6 * 32 + 1, device="cuda")
    for at, row in ((0, 0), (1, 0), (3, 0), (0, 1), (2, 1), (0, 0)):
        x = memory[at : at + 4 * 5 * 64].view(1, 4, 5, 64)
        cos, sin = table[row : row + 2 * 5 * 32].view(2, 5, 32)
        got = rotate(x, cos, sin, pairing)
        exact = rotate(x.double(), cos.double(), sin.double(), pairing)
        assert torch.allclose(got.double(), exact, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_calls_of_a_kind_that_was_served_before(layout):
    """What is kept of one call serves another only if nothing that matters differs."""
    rope = RotaryEmbedding(64, layout=layout).cuda()
    shape = (2, 4, 6, 64) if layout == "bhsd" else (2, 6, 4, 64)
    memory = torch.randn(3 * 2 * 4 * 6 * 64 + 8, device="cuda", dtype=torch.bfloat16)
    count = 2 * 4 * 6 * 64
    packed = memory[: 3 * count].view(2, -1, 3 * 64)
    served = [
        memory[:count].view(shape),
        memory[count : 2 * count].view(shape),
        memory[3 : 3 + count].view(shape),  # begins elsewhere
        memory[:count]
        .view(2, shape[2], shape[1], 64)
        .transpose(1, 2),  # lies otherwise
        packed[..., 64:128].view(shape),  # a slice, as of packed q, k and v
        memory[:64].expand(shape),  # many in one place
        memory[:count].view(shape).clone().requires_grad_(),
    ]
    for start, x in enumerate([*served, *reversed(served)]):
        got, other = rope(x, x, start=start)
        assert got.requires_grad == x.requires_grad and torch.equal(got, other)
        positions = start + torch.arange(6, device="cuda")
        if layout == "bshd":
            got, x = got.transpose(1, 2), x.transpose(1, 2)
        assert_one_rounding(got, x, rope, positions)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_transforms_follow_each_step(pairing):
    """vmap, forward mode and higher derivatives are no business of the kernel."""
    q, k = tensors(2, 3, 4, 4, 16)
    module = RotaryEmbedding(16, pairing=pairing)
    rope = RotaryEmbedding(16, pairing=pairing).cuda()
    turned = rope(q, k)  # from here on calls of this kind are known

    def results(rope, q, k):
        several = torch.stack([q, k.flip(0)]), torch.stack([k, q * 2])
        moved = torch.func.vmap(rope)(*several)
        places = torch.tensor([[4, 0, 1], [9, 9, -2]], device=q.device)
        moved += torch.func.vmap(lambda q, k, p: rope(q, k, p))(*several, places)
        tangent = torch.func.jvp(rope, (q, k), (k, q))[1]
        energy = lambda x: rope(x, k)[0].pow(3).sum()  # noqa: E731
        gradient, slope = torch.func.grad(energy)(q), torch.func.vjp(rope, q, k)[1]
        leaf = q.clone().requires_grad_()
        batch = torch.stack([k, k * 2, q])
        batched = torch.autograd.grad(
            rope(leaf, k)[0], leaf, batch, is_grads_batched=True
        )
        curve = torch.autograd.functional.hessian(
            lambda x: rope(x, k[:1, :1])[0].pow(3).sum(), q[:1, :1], vectorize=True
        )
        return [*moved, *tangent, gradient, *slope((k, q)), *batched, curve]

    on_cpu = results(module, q.cpu(), k.cpu())
    for got, expected in zip(results(rope, q, k), on_cpu, strict=True):
        assert torch.allclose(got.cpu(), expected, atol=1e-4)
    again = rope(q, k)
    assert all(torch.equal(a, b) for a, b in zip(again, turned, strict=True))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, k)
        tangent = torch.autograd.forward_ad.unpack_dual(rope(dual, k)[0]).tangent
    assert torch.allclose(tangent, turned[1], atol=1e-5)


def test_fake_tensors_have_no_addresses():
    rope = RotaryEmbedding(64).cuda()
    with FakeTensorMode():
        q, k = (torch.empty(1, heads, 5, 64, device="cuda") for heads in (4, 2))
        assert [x.shape for x in rope(q, k)] == [q.shape, k.shape]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scaling": functools.partial(yarn, factor=4, trained_length=4096)},
        {"inv_freq": inverse_frequencies(64) / 3},
    ],
)
def test_captured_by_a_cuda_graph(options):
    q, k = tensors(2, 16, 4, 2, 64)
    rope = RotaryEmbedding(64, **options).cuda()
    places = torch.randint(-9, 10**6, (2, 16), device="cuda")
    starts = torch.tensor([3, 5_000], device="cuda")
    rope(q, k), rope(q, k, places), rope(q, k, start=starts)  # compile
    del rope  # and its rows
    rope = RotaryEmbedding(64, **options).cuda()  # with no call before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        turned = [rope(q, k), rope(q, k, places), rope(q, k, start=starts)]
        turned.append(rope(q, k, start=5_000))  # past the rows that are kept
    q.copy_(torch.randn_like(q))
    places.copy_(torch.randint(-9, 10**6, (2, 16), device="cuda"))
    starts += 100
    graph.replay()
    again = [rope(q, k), rope(q, k, places), rope(q, k, start=starts)]
    again.append(rope(q, k, start=5_000))
    for got, expected in zip(turned, again, strict=True):
        for one, other in zip(got, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_compiled_under_autocast_with_gradients(pairing):
    rope = RotaryEmbedding(32, pairing=pairing).cuda()
    project = torch.nn.Linear(32, 32).cuda()

    def block(x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            q = project(x)
            return rope(q, q)[0].float().square().sum()

    x = torch.randn(2, 4, 16, 32, device="cuda", requires_grad=True)
    (expected,) = torch.autograd.grad(block(x), x)
    (got,) = torch.autograd.grad(torch.compile(block, fullgraph=True)(x), x)
    assert torch.allclose(got, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_compiled_while_lengths_and_heads_change(pairing):
    rope = RotaryEmbedding(64, pairing=pairing).cuda()
    compiled = torch.compile(rope, fullgraph=True)
    for heads, batch, seq in itertools.product((8, 6), (2, 3), (5, 9, 33)):
        given = [
            torch.randn(batch, seq, h, 64, device="cuda").transpose(1, 2)
            for h in (heads, 2)
        ]
        found = []
        for module in (compiled, rope):
            q, k = (x.clone().requires_grad_() for x in given)
            turned = module(q, k, start=seq)
            loss = sum((x**3).sum() for x in turned)
            found.append([*turned, *torch.autograd.grad(loss, (q, k))])
        for got, expected in zip(*found, strict=True):
            assert torch.allclose(got, expected, atol=1e-4)


def test_one_position_for_all():
    x = torch.randn(2, 3, 5, 64, device="cuda")
    cos, sin = cos_sin(torch.tensor(7), inverse_frequencies(64))
    got = rotate(x, cos.cuda(), sin.cuda(), "half")
    assert torch.allclose(got.cpu(), rotate(x.cpu(), cos, sin, "half"), atol=1e-6)


def test_compiled_where_only_the_data_tell_a_length():
    rope = RotaryEmbedding(64).cuda()

    def packed(x, mask):
        q = x[:, mask].transpose(1, 2)
        return rope(q, q, torch.arange(10, device="cuda")[mask])

    x = torch.randn(2, 10, 4, 64, device="cuda")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(packed, fullgraph=True)
        for kept in (7, 2, 0):
            mask = torch.arange(10, device="cuda") < kept
            for got, expected in zip(compiled(x, mask), packed(x, mask), strict=True):
                assert torch.allclose(got, expected, atol=1e-6)


def test_exports_and_loads():
    q, k = tensors(2, 5, 4, 2, 64)
    rope = RotaryEmbedding(64).cuda()
    exported = torch.export.export(rope, (q, k))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for got, expected in zip(again(q, k), rope(q, k), strict=True):
        assert torch.allclose(got, expected, atol=1e-6)


def test_tables_that_learn_take_the_torch_form():
    x = torch.randn(1, 2, 3, 8, device="cuda")
    cos = torch.ones(3, 4, device="cuda", requires_grad=True)
    rotate(x, cos, torch.zeros(3, 4, device="cuda")).sum().backward()
    assert cos.grad is not None and cos.grad.abs().sum() > 0


@pytest.mark.parametrize("way", ["start", "positions", "tables"])
def test_compiled_calls_take_the_kernels(way):
    torch.compiler.reset()  # all tests compile one function, eight times at most
    rope = RotaryEmbedding(64).cuda()
    q, k = tensors(2, 5, 4, 2, 64)
    places = torch.tensor(EACH, device="cuda")
    arguments = {
        "start": {"start": 7},
        "positions": {"positions": places},
        "tables": {"tables": rope.tables(places)},
    }[way]
    rope(q, k, **arguments)
    compiled = torch.compile(rope, fullgraph=True)
    for got, expected in zip(
        compiled(q, k, **arguments), rope(q, k, **arguments), strict=True
    ):
        assert torch.allclose(got, expected, atol=1e-6)
    names = launched(lambda: compiled(q, k, **arguments))
    assert sum("_rotate_token" in name for name in names) == 1, names
    assert len(names) <= (2 if way == "positions" else 1), names


def test_operators_are_registered_in_full():
    q, k = tensors(2, 3, 4, 2, 16)
    cos, sin = (torch.randn(3, 8, device="cuda") for _ in range(2))
    how, out = (cos, sin, "half", "bhsd", False), [q.clone(), k.clone()]
    rows = (torch.arange(3, device="cuda"), inverse_frequencies(16), 1.5, 2, -1, 4)
    checks = ("test_schema", "test_faketensor")  # gradients are the Function's
    for operator, inputs, named in (
        (ops.ROTATE, ([q, k], *how), {}),
        (ops.ROTATE_OUT, ([q, k], *how), {"out": out}),
        (ops.COS_SIN, (rows[0], rows[1].cuda(), *rows[2:]), {}),
    ):
        verdicts = torch.library.opcheck(operator, inputs, named, test_utils=checks)
        assert set(verdicts.values()) == {"SUCCESS"}


SMALL_RUN = """
import itertools, torch
from rope_teach import RotaryEmbedding
for pairing, dtype, heads in itertools.product(
    ("half", "interleaved"), (torch.float32, torch.bfloat16), (1, 3, 8)
):
    rope = RotaryEmbedding(64, pairing=pairing, rotary_dim=48).cuda()
    whole = RotaryEmbedding(64, pairing=pairing).cuda()
    norms = [torch.nn.RMSNorm(64, device="cuda", dtype=dtype) for _ in range(2)]
    q, k = (
        torch.randn(2, h, 5, 64, device="cuda", dtype=dtype, requires_grad=True)
        for h in (heads, 1)
    )
    places = torch.randint(-9, 9, (2, 5), device="cuda")
    for turned in (
        rope(q, k), whole(q, k), whole(q, k, norms=norms), rope(q, k, places)
    ):
        sum(x.float().sum() for x in turned).backward()
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="comes with CUDA")
def test_touches_no_memory_but_its_own():
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]
    apart = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # no shared blocks
    ran = subprocess.run(
        [*command, sys.executable, "-c", SMALL_RUN],
        env=apart, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ERROR SUMMARY: 0 errors" in ran.stdout, ran.stdout[-2000:] + ran.stderr
    assert ran.returncode == 0
