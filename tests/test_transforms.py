"""What torch does to functions, done to every way of calling a rotation.

Queries differ from keys in values and in number of heads, in both pairings and all
layouts. Derivatives are held to finite differences and to loops, results to the oracle.
"""

import functools
import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian, jacobian
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies, rotate
from tests.samples import (
    F64,
    PAIRINGS,
    all_close,
    both_pairings,
    close,
    each_layout,
    oracle,
    queries_and_keys,
    sample,
    to_layout,
)

PLACES = torch.tensor([[4, 0, 7], [-3, 1_000_000, 2]])
OTHERS = torch.tensor([[8, 8, 1], [0, 5, 60]])


class Call(nn.Module):
    """One way of calling a module that rotates, as a module of q and k."""

    def __init__(self, options, normalised=False, **where):
        super().__init__()
        self.rope, self.where, self.norms = RotaryEmbedding(4, **options), where, None
        if normalised:  # by weights that differ feature by feature
            self.norms = nn.ModuleList(nn.RMSNorm(4, eps=1e-3) for _ in range(2))
            for seed, norm in enumerate(self.norms.double()):
                norm.weight.data += sample(4, seed=seed, dtype=F64) / 4
        self.requires_grad_(False)

    def forward(self, q, k):
        norms = self.norms and tuple(self.norms)
        return self.rope(q, k, norms=norms, **self.where)


class ByTables(nn.Module):
    """The function, by ready tables."""

    def __init__(self, pairing, layout):
        super().__init__()
        self.tables = cos_sin(PLACES, inverse_frequencies(4), F64)
        self.names = pairing, layout

    def forward(self, q, k):
        return tuple(rotate(x, *self.tables, *self.names) for x in (q, k))


def module(normalised=False, start=None, positions=PLACES, **options):
    """A factory of calls of a module at fixed positions."""
    where = {"positions": positions} if start is None else {"start": start}
    return lambda **names: Call({**options, **names}, normalised, **where)


CALLS = {
    "rotate": ByTables,
    "start": module(start=5),
    "positions": module(),
    "positions of their own": module(positions=(PLACES, OTHERS)),
    "learned": module(learned=True),
    "xpos": module(positions=OTHERS, xpos_scale_base=16),
    "trailing": module(rotary_dim=2, trailing=True, clockwise=True),
    "norms": module(normalised=True),
}
each_call = pytest.mark.parametrize("call", CALLS)
in_turn = pytest.mark.parametrize(  # for what takes long: one pairing for each call
    "call, pairing", [(call, PAIRINGS[i % 2]) for i, call in enumerate(CALLS)]
)


def setting(call, pairing="half", layout="bhsd", dtype=F64, heads=2, kv_heads=1):
    """A call of one kind, with q and k for it in its layout."""
    q, k = queries_and_keys(2, heads, kv_heads, 3, 4, dtype=dtype)
    function = CALLS[call](pairing=pairing, layout=layout)
    return function, (to_layout(q, layout), to_layout(k, layout))


def energy(function):
    """A number that depends on every result, and not on their length alone."""
    return lambda q, k: sum(
        (x.sin() * (i + 1)).sum() for i, x in enumerate(function(q, k))
    )


# --------------------------------------------------------------------- derivatives


@both_pairings
@each_call
def test_gradients_forward_mode_and_batches_of_both(call, pairing):
    function, inputs = setting(call, pairing)
    leaves = [x.requires_grad_() for x in inputs]
    checks = {
        "check_forward_ad": True,
        "check_batched_grad": True,
        "check_batched_forward_grad": True,
    }
    assert gradcheck(function, leaves, **checks, fast_mode=True)
    assert gradgradcheck(
        function, leaves, check_batched_grad=True, check_fwd_over_rev=True,
        fast_mode=True,
    )  # fmt: skip


@both_pairings
@each_layout
def test_gradients_in_every_layout(layout, pairing):
    function, inputs = setting("positions", pairing, layout)
    leaves = [x.requires_grad_() for x in inputs]
    assert gradcheck(function, leaves, check_forward_ad=True)


@both_pairings
def test_gradients_of_tables_positions_and_frequencies(pairing):
    x = sample(2, 2, 3, 4, seed=5, dtype=F64).requires_grad_()
    angle = sample(2, 3, 2, seed=6, dtype=F64).requires_grad_()

    def turned(x, angle):
        return rotate(x, angle.cos(), angle.sin(), pairing)

    assert gradcheck(turned, (x, angle), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(turned, (x, angle), check_batched_grad=True)
    rope = RotaryEmbedding(4, pairing=pairing, learned=True)
    places = (OTHERS / 8).double().requires_grad_()
    assert gradcheck(rope.rotate, (x, places), check_forward_ad=True)
    leaf = rope.frequencies

    def score(frequencies):
        named = {"frequencies": frequencies}
        return torch.func.functional_call(rope, named, (x, x.flip(-1), OTHERS))[1].sum()

    step = 1e-3 * sample(*leaf.shape, seed=7)
    (slope,) = torch.autograd.grad(score(leaf), leaf)
    numeric = (score(leaf + step) - score(leaf - step)) / 2
    assert abs((slope * step).sum() - numeric) < 1e-3 * abs(numeric) + 1e-4
    close(grad(score)(leaf.detach()), slope)


@both_pairings
@each_call
def test_jacobians_and_hessians_in_batches(call, pairing):
    function, inputs = setting(call, pairing)
    one_by_one = jacobian(function, inputs)
    for strategy in ("reverse-mode", "forward-mode"):
        together = jacobian(function, inputs, vectorize=True, strategy=strategy)
        for got, expected in zip(together, one_by_one, strict=True):
            all_close(got, expected, 1e-12)
    score = energy(function)
    slow = hessian(score, inputs)
    for strategy in ("reverse-mode", "forward-mode"):
        fast = hessian(score, inputs, vectorize=True, outer_jacobian_strategy=strategy)
        for got, expected in zip(fast, slow, strict=True):
            all_close(got, expected, 1e-12)
    for transform in (jacfwd, jacrev):
        found = transform(lambda q, k: function(q, k)[1], argnums=1)(*inputs)
        close(found, one_by_one[1][1], 1e-12)
    found = torch.func.hessian(score)(*inputs)
    close(found, slow[0][0], 1e-12)


@both_pairings
@each_call
def test_a_batch_of_upstream_gradients(call, pairing):
    function, inputs = setting(call, pairing)
    leaves = [x.requires_grad_() for x in inputs]
    turned = function(*leaves)
    batch = [sample(3, *x.shape, seed=8 + i, dtype=F64) for i, x in enumerate(turned)]
    got = torch.autograd.grad(
        turned, leaves, batch, is_grads_batched=True, retain_graph=True
    )
    for index in range(3):
        grads = [each[index] for each in batch]
        expected = torch.autograd.grad(turned, leaves, grads, retain_graph=True)
        all_close([x[index] for x in got], expected, 1e-12)
    second = torch.autograd.grad(energy(function)(*leaves), leaves, create_graph=True)
    several = [sample(3, *x.shape, seed=4, dtype=F64) for x in second]
    curves = torch.autograd.grad(
        second, leaves, several, is_grads_batched=True, retain_graph=True
    )
    one = torch.autograd.grad(second, leaves, [x[2] for x in several])
    all_close([x[2] for x in curves], one, 1e-12)


@both_pairings
@each_call
@pytest.mark.parametrize("moved", ["q", "k", "both"])
def test_forward_mode_follows_what_moves(call, pairing, moved):
    """With a tangent for q alone, or k alone: neither may vanish, nor spread."""
    function, (q, k) = setting(call, pairing)
    tangents = sample(*q.shape, seed=9, dtype=F64), sample(*k.shape, seed=10, dtype=F64)
    kept = [
        t * (moved in (name, "both")) for t, name in zip(tangents, "qk", strict=True)
    ]
    expected = [
        torch.einsum("...abcd,abcd->...", jacobian(function, (q, k))[i][i], kept[i])
        for i in range(2)
    ]
    all_close(jvp(function, (q, k), tuple(kept))[1], expected, 1e-12)
    with forward_mode.dual_level():
        duals = [
            forward_mode.make_dual(x, t) if moved in (name, "both") else x
            for x, t, name in zip((q, k), tangents, "qk", strict=True)
        ]
        found = [forward_mode.unpack_dual(x).tangent for x in function(*duals)]
    for got, exact, name in zip(found, expected, "qk", strict=True):
        if moved in (name, "both"):
            close(got, exact, 1e-12)
        else:
            assert got is None or not got.any()
    pulled = vjp(function, q, k)[1](tuple(tangents))
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    all_close(pulled, torch.autograd.grad(function(*leaves), leaves, tangents), 1e-12)


# ---------------------------------------------------------------------------- vmap


@both_pairings
@each_call
def test_vmap_over_inputs_nested_and_of_gradients(call, pairing):
    function, _ = setting(call, pairing)
    q = sample(2, 3, 2, 2, 3, 4, seed=11, dtype=F64)
    k = sample(2, 3, 2, 1, 3, 4, seed=12, dtype=F64)
    expected = [
        torch.stack([torch.stack([function(*x)[i] for x in zip(a, b, strict=True)])
                     for a, b in zip(q, k, strict=True)])
        for i in range(2)
    ]  # fmt: skip
    all_close(vmap(vmap(function))(q, k), expected, 1e-11)
    moved = vmap(function, in_dims=(3, 1), out_dims=(1, 4))(
        q[0].movedim(0, 3), k[0].movedim(0, 1)
    )
    all_close(
        (moved[0].movedim(1, 0), moved[1].movedim(4, 0)), [x[0] for x in expected]
    )
    fixed = vmap(function, in_dims=(0, None))(q[0], k[0, 1])
    close(fixed[0], expected[0][0], 1e-11)
    score = energy(function)
    slopes = vmap(grad(score, (0, 1)))(q[0], k[0])
    for index in range(3):
        leaves = [x[0, index].clone().requires_grad_() for x in (q, k)]
        one = torch.autograd.grad(score(*leaves), leaves)
        all_close([x[index] for x in slopes], one, 1e-11)
    tangent = vmap(lambda q, t: jvp(lambda q: function(q, k[0, 0]), (q,), (t,))[1][0])
    pushed = jvp(lambda q: function(q, k[0, 0]), (q[0, 1],), (q[1, 1],))[1][0]
    close(tangent(q[0], q[1])[1], pushed, 1e-11)


@both_pairings
@each_layout
def test_vmap_over_tables_positions_and_starts(pairing, layout):
    q, k = (to_layout(x, layout) for x in queries_and_keys(seq=3, dtype=F64))
    rope = RotaryEmbedding(8, pairing=pairing, layout=layout)
    tables = cos_sin(PLACES, inverse_frequencies(8), F64)
    each = vmap(lambda c, s: rotate(q, c, s, pairing, layout))(*tables)
    for got, cos, sin in zip(each, *tables, strict=True):
        close(got, rotate(q, cos, sin, pairing, layout), 1e-12)
    several = vmap(rope, in_dims=(None, None, 0))(q, k, PLACES)
    for index, places in enumerate(PLACES):
        all_close([x[index] for x in several], rope(q, k, places), 1e-12)
    starts = torch.tensor([3, 5_000])
    several = vmap(lambda n: rope(q, k, start=n))(starts)
    for index, start in enumerate((3, 5_000)):
        all_close([x[index] for x in several], rope(q, k, start=start), 1e-12)
    pads = torch.tensor([[0, 2], [1, 1]])
    several = vmap(lambda n: rope(q, k, pad_len=n, start=9))(pads)
    for index, pad_len in enumerate(pads):
        all_close([x[index] for x in several], rope(q, k, pad_len=pad_len, start=9))


@both_pairings
def test_vmap_in_float32_takes_kept_rows_too(pairing):
    rope = RotaryEmbedding(8, pairing=pairing)
    q, k = (sample(3, 2, h, 5, 8, seed=h) for h in (4, 2))
    places = torch.arange(3)[:, None] * 700 + torch.arange(5)
    for got, x in zip(vmap(rope)(q, k, places), (q, k), strict=True):
        for index in range(3):
            close(got[index], oracle(x[index], places[index], pairing), 1e-5)


# ------------------------------------------------------------- fakes, traces, graphs


@both_pairings
@each_call
def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(call, pairing):
    for dtype in (F64, torch.float32, torch.bfloat16):
        if call == "norms" and dtype != F64:
            continue
        function, inputs = setting(call, pairing, dtype=dtype)
        inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
        real = function(*inputs)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = function(*map(mode.from_tensor, inputs))
        for fake, x in zip(fakes, real, strict=True):
            assert (fake.shape, fake.dtype) == (x.shape, x.dtype)
        all_close(function(*inputs), real, 0)


@in_turn
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_what_other_inputs_need(call, pairing, mode):
    function, inputs = setting(call, pairing, dtype=F64)
    graph = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*inputs)
    other = [x.flip(0) * 1.5 - 0.25 for x in inputs]
    all_close(graph(*other), function(*other), 1e-12)
    slope = make_fx(
        grad(energy(function)), tracing_mode=mode, _allow_non_fake_inputs=True
    )
    all_close([slope(*inputs)(*other)], [grad(energy(function))(*other)], 1e-12)


@in_turn
def test_compiles_as_one_graph_both_ways(call, pairing):
    torch.compiler.reset()
    function, inputs = setting(call, pairing)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = []
    for way in (function, compiled):
        leaves = [x.clone().requires_grad_() for x in inputs]
        turned = way(*leaves)
        score = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(turned))
        found.append([*turned, *torch.autograd.grad(score, leaves)])
    all_close(*found, 1e-12)
    with torch.no_grad():
        all_close(compiled(*inputs), found[0][:2], 1e-12)


@pytest.mark.parametrize("way", ["start", "pad_len", "positions"])
def test_compiles_where_the_length_of_an_argument_is_a_symbol(way):
    """After calls with an int, one number for each sequence takes a dynamic shape."""
    torch.compiler.reset()
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys(batch=5, seq=6)
    compiled = torch.compile(rope, backend="aot_eager", fullgraph=True)
    for start in (0, 3):
        all_close(compiled(q, k, start=start), rope(q, k, start=start), 1e-6)
    each = torch.arange(5) if way != "positions" else torch.randint(50, (5, 6))
    torch._dynamo.maybe_mark_dynamic(each, 0)
    all_close(compiled(q, k, **{way: each}), rope(q, k, **{way: each}), 1e-6)
    with pytest.raises(Exception, match="batch"):
        compiled(q, k, **{way: each[:4]})


@in_turn
@pytest.mark.parametrize("strict", [False, True])
def test_exports(call, pairing, strict):
    function, inputs = setting(call, pairing)
    program = torch.export.export(function, tuple(inputs), strict=strict)
    other = [x.flip(0) * 1.5 - 0.25 for x in inputs]
    all_close(program.module()(*other), function(*other), 1e-12)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", [{}, {"layout": "sbhd", "pairing": "half"}])
def test_exports_positions_of_any_length_and_batch(strict, options):
    rope = RotaryEmbedding(8, **options)
    layout = rope.layout
    batch, seq = (
        torch.export.Dim("batch", min=2, max=64),
        torch.export.Dim("seq", min=2),
    )
    where = {"bhsd": {0: batch, 2: seq}, "sbhd": {1: batch, 0: seq}}[layout]
    inputs = [to_layout(x, layout) for x in queries_and_keys(3, seq=5)]
    places = torch.randint(0, 9, (3, 5))
    program = torch.export.export(
        rope, (*inputs, places), strict=strict,
        dynamic_shapes={"q": where, "k": where, "positions": {0: batch, 1: seq}},
    )  # fmt: skip
    for size, length in ((3, 5), (2, 2), (7, 3_000)):
        inputs = [to_layout(x, layout) for x in queries_and_keys(size, seq=length)]
        places = torch.randint(-9, 10**6, (size, length))
        all_close(program.module()(*inputs, places), rope(*inputs, places), 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@both_pairings
@each_call
def test_traces_are_right_for_other_inputs(call, pairing):
    function, inputs = setting(call, pairing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning: sizes are kept as they were
        traced = torch.jit.trace(function, tuple(inputs), check_trace=False)
        leaves = tuple(x.clone().requires_grad_() for x in inputs)
        learned = torch.jit.trace(function, leaves, check_trace=False)
    other = [x.flip(0) * 1.5 - 0.25 for x in inputs]
    all_close(traced(*other), function(*other), 1e-12)
    slopes = []
    for way in (function, learned):
        leaves = [x.clone().requires_grad_() for x in other]
        score = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(way(*leaves)))
        slopes.append(torch.autograd.grad(score, leaves))
    all_close(*slopes, 1e-12)


# ---------------------------------------------------------------------------- out=


@both_pairings
def test_out_takes_no_gradient(pairing, refuses):
    rope, (q, k) = RotaryEmbedding(8, pairing=pairing), queries_and_keys()
    out = torch.empty_like(q), torch.empty_like(k)
    for grows in ((True, False), (False, True)):
        leaves = [
            x.clone().requires_grad_(g) for x, g in zip((q, k), grows, strict=True)
        ]
        call = functools.partial(rope, *leaves, out=out)
        refuses(call, "RuntimeError: out= takes no gradient")
        with torch.no_grad():
            all_close(rope(*leaves, out=out), rope(q, k), 1e-6)
    with forward_mode.dual_level():
        dual = forward_mode.make_dual(q, q.flip(0))
        refuses(lambda: rope(dual, k, out=out), "RuntimeError: out= takes no gradient")
    learned = RotaryEmbedding(8, pairing=pairing, learned=True)
    refuses(lambda: learned(q, k, out=out), "RuntimeError: out= takes no gradient")
    with torch.no_grad():
        all_close(learned(q, k, out=out), rope(q, k), 1e-5)
        all_close(out, rope(q, k), 1e-5)


@both_pairings
@pytest.mark.parametrize("options", [{}, {"rotary_dim": 4, "trailing": True}])
@pytest.mark.parametrize("where", [{}, {"positions": torch.tensor([[4, 0, 1, 9, 2]])}])
def test_out_under_compile(pairing, options, where):
    torch.compiler.reset()
    rope, (q, k) = RotaryEmbedding(8, pairing=pairing, **options), queries_and_keys()
    cache = torch.zeros(2, 2, 9, 8)

    def step(q, k, cache):
        return rope(q, k, out=(None, cache[:, :, 2:7]), **where)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = compiled(q, k, cache)
    all_close(got, rope(q, k, **where))
    close(cache[:, :, 2:7], got[1], 0)
    assert not cache[:, :, :2].any() and not cache[:, :, 7:].any()


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_out_in_a_recorded_graph(pairing):
    rope, (q, k) = RotaryEmbedding(8, pairing=pairing), queries_and_keys()

    def step(q, k):
        out = torch.zeros_like(q), torch.zeros_like(k)
        rope(q, k, out=out)
        return tuple(x * 2 for x in out)

    graph = make_fx(step)(q, k)
    other = q.flip(0), k - 1
    all_close(graph(*other), [2 * x for x in rope(*other)])
    functional = torch.func.functionalize(step)
    all_close(functional(*other), [2 * x for x in rope(*other)])
    with FakeTensorMode() as mode:
        fakes = step(mode.from_tensor(q), mode.from_tensor(k))
    assert [x.shape for x in fakes] == [q.shape, k.shape]


def test_checkpoints_save_nothing_but_inputs():
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys()
    leaf = q.clone().requires_grad_()
    call = functools.partial(rope, start=3)
    again = torch.utils.checkpoint.checkpoint(call, leaf, k, use_reentrant=False)
    plain = rope(leaf, k, start=3)
    slopes = [torch.autograd.grad(x[0].pow(3).sum(), leaf)[0] for x in (again, plain)]
    close(*slopes, 0)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        rope(leaf, k, start=3)
    assert sum(sizes) <= 2 * 2 * 5 * 4  # tables for q: no activation is kept
