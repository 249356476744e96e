"""RotaryEmbedding: positions of every kind, the cache, compilers, moves, messages."""

import copy
import io
import math
import pickle
import shutil
import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, vmap

from rope_teach import (
    RotaryEmbedding,
    cos_sin,
    inverse_frequencies,
    rotate,
)
from rope_teach.rotary import LARGEST_TABLE, SMALLEST_TABLE
from tests.samples import F64, both_pairings, close, oracle, sample

# --------------------------------------------------------------------- positions

STEPS = torch.arange(5)
EACH = torch.tensor([[4, 0, 1, 9, 2], [7, 7, 0, -3, 1_000_000]])
WAYS = {
    "from zero": ({}, STEPS),
    "start": ({"start": 7}, STEPS + 7),
    "negative start": ({"start": -3}, STEPS - 3),
    "past every table": ({"start": 9_999_999}, STEPS + 9_999_999),
    "start as a tensor": ({"start": torch.tensor(7)}, STEPS + 7),
    "start of each": (
        {"start": torch.tensor([3, 50])},
        STEPS + torch.tensor([[3], [50]]),
    ),
    "left padding": (
        {"pad_len": torch.tensor([0, 2])},
        STEPS - torch.tensor([[0], [2]]),
    ),
    "padding and start": (
        {"pad_len": torch.tensor([1, 2]), "start": 40},
        STEPS + torch.tensor([[39], [38]]),
    ),
    "padding and start of each": (
        {"pad_len": torch.tensor([1, 2]), "start": torch.tensor([5, 9])},
        STEPS + torch.tensor([[4], [7]]),
    ),
    "one row": ({"positions": EACH[0]}, EACH[0]),
    "one row for a batch": ({"positions": EACH[:1]}, EACH[:1]),
    "a row for each": ({"positions": EACH}, EACH),
    "fractions": ({"positions": STEPS / 4}, STEPS / 4),
    "int32": ({"positions": EACH.int()}, EACH),
}


@both_pairings
@pytest.mark.parametrize("rotary_dim", [None, 4])
@pytest.mark.parametrize("way", WAYS)
def test_positions_of_every_kind(way, rotary_dim, pairing):
    arguments, positions = WAYS[way]
    q, k = sample(2, 6, 5, 8), sample(2, 3, 5, 8, seed=1)  # grouped queries
    expected = [oracle(x, positions, pairing, rotary_dim) for x in (q, k)]
    rope = RotaryEmbedding(8, rotary_dim=rotary_dim, pairing=pairing)
    for got, exact in zip(rope(q, k, **arguments), expected, strict=True):
        close(got, exact)
    close(rope.rotate(k, **arguments), expected[1])
    rope = RotaryEmbedding(8, rotary_dim=rotary_dim, pairing=pairing, layout="bshd")
    got = rope(q.transpose(1, 2), k.transpose(1, 2), **arguments)
    for x, exact in zip(got, expected, strict=True):
        close(x.transpose(1, 2), exact)


OPTIONS = [
    "head_dim", "base", "rotary_dim", "trailing", "pairing", "layout", "scaling",
    "attention_factor", "axes", "clockwise", "xpos_scale_base", "xpos_origin",
    "inv_freq",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_module_is_cannot_be_changed_later(name):
    """Rows are kept and shared: another value would be half obeyed."""
    rope = RotaryEmbedding(8)
    for one in (rope, copy.deepcopy(rope), pickle.loads(pickle.dumps(rope))):
        with pytest.raises(AttributeError, match=name):
            setattr(one, name, getattr(RotaryEmbedding(4, base=5), name))
        assert repr(one) == repr(rope)


def test_the_base_is_used_with_and_without_the_cache():
    rope, x = RotaryEmbedding(8, base=500), sample(2, 3, 5, 8)
    expected = oracle(x, STEPS, base=500)
    close(rope.rotate(x), expected)
    close(rope.rotate(x, STEPS), expected)
    close(rope.inv_freq, inverse_frequencies(8, 500))


def test_queries_and_keys_at_their_own_positions():
    rope, q, k = RotaryEmbedding(8), sample(2, 6, 1, 8), sample(2, 3, 5, 8, seed=1)
    here = torch.tensor([[4], [9]])
    q_out, k_out = rope(q, k, (here, EACH))
    close(q_out, oracle(q, here))
    close(k_out, oracle(k, EACH))


@both_pairings
def test_a_decode_step_continues_the_prompt(pairing):
    rope, q, k = (
        RotaryEmbedding(8, pairing=pairing),
        sample(2, 4, 6, 8),
        sample(2, 2, 6, 8),
    )
    whole = rope(q, k)
    for t in range(6):
        step = rope(q[:, :, t : t + 1], k[:, :, t : t + 1], start=t)
        for x, y in zip(step, whole, strict=True):
            close(x, y[:, :, t : t + 1])


def test_left_padding_keeps_the_scores():
    rope, q, k = RotaryEmbedding(8), sample(1, 2, 4, 8), sample(1, 2, 4, 8, seed=1)
    plain_q, plain_k = rope(q, k)
    padded = [nn.functional.pad(x, (0, 0, 3, 0)) for x in (q, k)]
    padded_q, padded_k = rope(*padded, pad_len=torch.tensor([3]))
    close(padded_q[:, :, 3:] @ padded_k[:, :, 3:].mT, plain_q @ plain_k.mT)


@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 4, 0, 8), (2, 0, 3, 8), (4, 0, 8)])
@both_pairings
def test_empty_axes_give_empty_results(shape, pairing):
    for layout, seq in (("bhsd", shape[-2]), ("bshd", shape[-3])):
        rope = RotaryEmbedding(8, pairing=pairing, layout=layout)
        x = torch.zeros(shape, requires_grad=True)
        for out in (*rope(x, x), *rope(x, x, torch.arange(seq))):
            assert out.shape == shape
            out.sum().backward()


def test_no_batch_axis():
    rope, x = RotaryEmbedding(8), sample(3, 5, 8)
    close(rope(x, x, start=2)[0], oracle(x[None], STEPS + 2)[0])
    rope = RotaryEmbedding(8, layout="bshd")
    got = rope.rotate(x.transpose(0, 1), start=2)
    close(got, oracle(x[None], STEPS + 2)[0].transpose(0, 1))


# ------------------------------------------------------------------------- dtypes


@both_pairings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_dtype_is_kept_and_the_result_rounded_once(dtype, pairing):
    x, other = sample(1, 2, 5, 8, dtype=dtype), sample(1, 2, 5, 8, seed=1)
    rope = RotaryEmbedding(8, pairing=pairing)
    exact = oracle(x, STEPS + 1_000_000, pairing)
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()
    noise = 1e-6 if dtype != F64 else 1e-9  # float32 tables; float64 angles past 1e6
    q, k_other = rope(x, other, start=1_000_000)
    q_other, k = rope(other, x, start=1_000_000)  # each in its own dtype
    assert q_other.dtype == k_other.dtype == torch.float32
    for out in (q, k):
        assert out.dtype == dtype
        assert ((out.double() - exact).abs() <= rounding + noise).all()


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


MOVES = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to a dtype": lambda m: m.to(torch.float16),
    "to meta": lambda m: m.to("meta"),
    "from meta": lambda m: m.to("meta").to_empty(device="cpu"),
    "eval": lambda m: m.eval(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save and load": save_and_load,
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_change_no_result(move):
    rope, x = RotaryEmbedding(8, rotary_dim=4, pairing="half"), sample(1, 2, 5, 8)
    expected = [rope.rotate(x, start=start) for start in (0, 3000)]
    (rope,) = MOVES[move](nn.Sequential(rope))
    for start, before in zip((0, 3000), expected, strict=True):
        assert torch.equal(rope.rotate(x, start=start), before)
    assert rope.inv_freq.dtype == F64
    assert not rope.state_dict() and not [*rope.parameters(), *rope.buffers()]
    assert repr(rope) == (
        "RotaryEmbedding(head_dim=8, rotary_dim=4, base=10000, pairing='half', "
        "layout='bhsd')"
    )


def test_a_module_made_on_meta_or_with_another_default_dtype_works():
    x = sample(1, 2, 5, 8)
    expected = RotaryEmbedding(8).rotate(x)
    with torch.device("meta"):
        rope = RotaryEmbedding(8)
    assert torch.equal(rope.rotate(x), expected)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(RotaryEmbedding(8).rotate(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert rope.rotate(x.to("meta")).device.type == "meta"
    assert torch.equal(rope.rotate(x), expected)


@both_pairings
def test_autocast_changes_nothing(pairing):
    rope, x = RotaryEmbedding(8, pairing=pairing), sample(1, 2, 5, 8)
    expected = rope.rotate(x, start=500)
    for positions in ({"start": 500}, {"positions": STEPS + 500}):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = rope.rotate(x, **positions)
        assert out.dtype == torch.float32 and torch.equal(out, expected)


# ------------------------------------------------------------- training, transforms


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@both_pairings
def test_training_after_inference(mode, pairing):
    rope, x = RotaryEmbedding(8, pairing=pairing), sample(1, 2, 5, 8)
    with mode():
        inferred = rope.rotate(x, start=5000)  # grows the table inside the mode
    x.requires_grad_()
    out = rope.rotate(x, start=5000)
    assert torch.equal(out, inferred)
    out.sum().backward()
    upstream = torch.ones_like(x)
    close(x.grad, oracle(upstream, -(STEPS + 5000), pairing))


@both_pairings
def test_transforms_use_the_module_and_leave_nothing_behind(pairing):
    rope, x = RotaryEmbedding(8, pairing=pairing), sample(3, 2, 5, 8)

    def energy(x):  # equals |x| squared
        return rope.rotate(x, start=5000).pow(2).sum()

    close(torch.func.grad(energy)(x), 2 * x, 1e-5)
    close(torch.vmap(torch.func.grad(energy))(x), 2 * x, 1e-5)
    copy.deepcopy(rope)  # fails if a table belongs to a transform that has ended
    close(rope.rotate(x, start=5000), oracle(x, STEPS + 5000, pairing))


def test_starts_and_positions_under_vmap():
    rope, x, starts = RotaryEmbedding(8), sample(2, 3, 5, 8), torch.tensor([3, 50])
    each = torch.vmap(lambda x, start: rope.rotate(x, start=start))(x, starts)
    close(each, rope.rotate(x, start=starts))
    close(torch.vmap(rope.rotate)(x, EACH), rope.rotate(x, EACH))


@both_pairings
def test_positions_can_be_learned(pairing):
    rope, x = RotaryEmbedding(4, pairing=pairing), sample(1, 2, 4, dtype=F64)
    places = torch.tensor([0.5, 3.0], dtype=F64, requires_grad=True)
    inputs = (x.requires_grad_(), places)
    assert torch.autograd.gradcheck(rope.rotate, inputs)
    assert torch.autograd.gradgradcheck(rope.rotate, inputs)


def test_double_backward():
    rope = RotaryEmbedding(4)
    x = sample(1, 1, 2, 4, dtype=F64).requires_grad_()

    def call(x):
        return rope(x, x, start=3)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


# ----------------------------------------------------------------------- the cache


@st.composite
def calls(draw):
    edges = [
        0,
        SMALLEST_TABLE - 3,
        SMALLEST_TABLE,
        20_000,
        LARGEST_TABLE - 3,
        LARGEST_TABLE,
    ]
    return {
        "seq": draw(st.integers(0, 6)),
        "start": draw(st.sampled_from(edges) | st.integers(-50, 5000)),
        "dtype": draw(st.sampled_from([torch.bfloat16, torch.float32, F64])),
        "inference": draw(st.booleans()),
        "device": draw(st.sampled_from(["cpu", "cpu", "meta"])),
    }


@both_pairings
@given(history=st.lists(calls(), min_size=2, max_size=6))
def test_the_cache_never_changes_a_result(pairing, history):
    used = RotaryEmbedding(8, pairing=pairing)
    for call in history:
        x = sample(1, 2, call["seq"], 8, dtype=call["dtype"]).to(call["device"])
        with torch.inference_mode(call["inference"]):
            got = used.rotate(x, start=call["start"])
        if call["device"] == "meta":
            continue
        positions = torch.arange(call["start"], call["start"] + call["seq"])
        dtype = F64 if call["dtype"] == F64 else torch.float32
        tables = cos_sin(positions, inverse_frequencies(8), dtype)
        assert torch.equal(got, rotate(x, *tables, pairing))


def test_writing_into_a_result_leaves_the_cache_alone():
    rope, x = RotaryEmbedding(8), sample(1, 2, 5, 8)
    first = rope.rotate(x)
    expected = first.clone()
    first.zero_()
    assert torch.equal(rope.rotate(x), expected)


# ---------------------------------------------------------------- compile, export

HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")
BACKEND = "inductor" if HAS_COMPILER else "aot_eager"


@both_pairings
def test_compiles_as_one_graph_forward_and_backward(pairing):
    torch.compiler.reset()
    rope = RotaryEmbedding(8, pairing=pairing)
    compiled = torch.compile(rope, fullgraph=True, backend=BACKEND)
    q, k = sample(2, 4, 5, 8), sample(2, 2, 5, 8, seed=1)
    results = []
    for call in (rope, compiled):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        outputs = call(*leaves, pad_len=torch.tensor([0, 2]))
        sum((x * x.detach().cos()).sum() for x in outputs).backward()
        results.append([*outputs, *(x.grad for x in leaves)])
    for eager, fused in zip(*results, strict=True):
        close(fused, eager)


@both_pairings
def test_compiled_backward_is_a_rotation_and_no_more(pairing):
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(RotaryEmbedding(8, pairing=pairing), backend=backend)
    leaves = [sample(1, 2, 5, 8, seed=seed).requires_grad_() for seed in (0, 1)]
    sum(x.square().sum() for x in compiled(*leaves)).backward()
    products = [sum("aten.mul." in step for step in graph) for graph in graphs]
    assert products == [8, 8]  # four for q and four for k, each way
    # What torch makes of the formula by itself: zeros, filled in part and added up.
    costly = ("full", "zeros", "slice_backward", "select_backward", "pad")
    assert not [step for step in graphs[1] if any(name in step for name in costly)]


@pytest.mark.parametrize("rotary_dim", [6, 8])
def test_compiled_bfloat16_pairs_are_the_eager_ones(rotary_dim):
    torch.compiler.reset()
    rope = RotaryEmbedding(8, rotary_dim=rotary_dim)
    compiled = torch.compile(rope, fullgraph=True, backend=BACKEND)
    x = sample(2, 3, 5, 8, dtype=torch.bfloat16)
    flat = sample(1 + x.numel(), seed=1, dtype=torch.bfloat16)
    wide = sample(2, 5, 3, 11, seed=2, dtype=torch.bfloat16)
    views = [
        x,
        flat[1:].view_as(x),
        wide[..., 1:9].transpose(1, 2),
        sample(8, 2, 3, 5, seed=3, dtype=torch.bfloat16).movedim(0, -1),
        sample(2, 3, 5, 16, seed=4, dtype=torch.bfloat16)[..., ::2],
        sample(2, 8, 1, 1, seed=5, dtype=torch.bfloat16).movedim(1, -1),
        sample(2, 3, 0, 8, dtype=torch.bfloat16),
    ]
    extreme = x.clone()
    extreme[0, 0, :, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, 1e-40])
    for view in (*views, extreme):
        for fused, eager in zip(compiled(view, view), rope(view, view), strict=True):
            torch.testing.assert_close(fused, eager, rtol=0, atol=0, equal_nan=True)
    results = []
    for call in (rope, compiled):
        leaf = x.clone().requires_grad_()
        turned, _ = call(leaf, x)
        results.append(torch.autograd.grad(turned.float().pow(3).sum(), leaf)[0])
    assert torch.equal(*results)
    exported = str(torch.export.export(rope, (x, x)).graph)
    assert "int32" not in exported  # other runtimes read the formula


@both_pairings
def test_compiled_transforms_and_learned_tables(pairing):
    torch.compiler.reset()
    cos, sin = cos_sin(torch.arange(5), inverse_frequencies(8), torch.float64)
    x = sample(3, 5, 8).requires_grad_()

    def score(x, cos):
        return rotate(x, cos, sin, pairing).sin().sum()

    def per_sample(x):
        return vmap(grad(score), (0, None))(x, cos)

    close(torch.compile(per_sample, backend=BACKEND)(x), per_sample(x))
    leaves = (x, cos.clone().requires_grad_())
    expected = torch.autograd.grad(score(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(score, backend=BACKEND)(*leaves), leaves)
    for one, other in zip(got, expected, strict=True):
        close(one, other)


def test_a_compiled_decode_loop_stops_recompiling():
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    rope, x = RotaryEmbedding(8), sample(1, 2, 1, 8)
    compiled = torch.compile(rope, fullgraph=True, backend=count)
    far = [*range(SMALLEST_TABLE - 5, SMALLEST_TABLE + 5), 5000, LARGEST_TABLE, 10**6]
    for start in [*range(20), *far]:
        close(compiled(x, x, start=start)[0], oracle(x, torch.tensor([start])))
    few = len(graphs)
    assert few <= 6
    rope(x, x, start=9000)  # grows the table outside the graph
    for start in [*range(20, 40), *far]:
        close(compiled(x, x, start=start + 1)[0], oracle(x, torch.tensor([start + 1])))
    assert len(graphs) <= few + 2


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_any_length(strict):
    rope, q, k = RotaryEmbedding(8), sample(2, 4, 5, 8), sample(2, 2, 5, 8)
    seq = torch.export.Dim("seq", min=2, max=100_000)
    shapes = {"q": {2: seq}, "k": {2: seq}}
    program = torch.export.export(rope, (q, k), dynamic_shapes=shapes, strict=strict)
    for length in (5, 2, SMALLEST_TABLE + 7):
        q, k = sample(2, 4, length, 8), sample(2, 2, length, 8)
        for got, expected in zip(program.module()(q, k), rope(q, k), strict=True):
            close(got, expected)


def test_exports_a_decode_step_with_left_padding():
    rope, x, pad_len = RotaryEmbedding(8), sample(2, 4, 1, 8), torch.tensor([0, 2])
    step = {"start": torch.tensor(5), "pad_len": pad_len}
    program = torch.export.export(rope, (x, x), step).module()
    for start in (6, 50_000):
        close(
            program(x, x, start=torch.tensor(start), pad_len=pad_len)[0],
            oracle(x, start - pad_len[:, None]),
        )


def test_exports_with_positions_and_as_the_file_that_is_shipped():
    rope, x, positions = RotaryEmbedding(8, pairing="half"), sample(2, 4, 5, 8), EACH
    file = io.BytesIO()
    torch.export.save(torch.export.export(rope, (x, x, positions)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    close(loaded(x, x, positions)[0], oracle(x, positions, "half"))


def test_fake_tensors_leave_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    rope, x = RotaryEmbedding(8), sample(1, 2, 5, 8)
    for start in (0, 5000):  # inside the table, and past it
        with FakeTensorMode() as mode:
            assert rope.rotate(mode.from_tensor(x), start=start).shape == x.shape
        close(rope.rotate(x, start=start), oracle(x, STEPS + start))


# ------------------------------------------------------------------------ bad input

ROPE, SWAPPED = RotaryEmbedding(8), RotaryEmbedding(8, layout="bshd")
X = torch.zeros(2, 4, 5, 8)
SHORT = X[:, :, :3]


def make(**changes):
    return lambda: RotaryEmbedding(**{"head_dim": 8, **changes})


BAD = {
    "ValueError: start, if a tensor, must have shape ... (2,) for batch=1": lambda: (
        RotaryEmbedding(8)(
            sample(2, 4, 5, 8), sample(1, 2, 5, 8), start=torch.tensor([0, 2])
        )
    ),
    "TypeError: q must be ... of 16 bits or more, got torch.float8_e4m3fn": lambda: (
        RotaryEmbedding(8)(
            sample(1, 1, 3, 8).to(torch.float8_e4m3fn), sample(1, 1, 3, 8)
        )
    ),
    "ValueError: inv_freq must have values": lambda: RotaryEmbedding(
        8, inv_freq=torch.ones(4, device="meta")
    ),
    "ValueError: head_dim ... even ... 7": make(head_dim=7),
    "ValueError: head_dim ... positive ... 0": make(head_dim=0),
    "TypeError: head_dim ... int ... 8.0": make(head_dim=8.0),
    "ValueError: rotary_dim ... even ... 3": make(rotary_dim=3),
    "ValueError: rotary_dim ... positive ... 0": make(rotary_dim=0),
    "ValueError: rotary_dim ... head_dim=8 ... 10": make(rotary_dim=10),
    "TypeError: rotary_dim ... int ... 0.5": make(rotary_dim=0.5),
    "ValueError: base ... finite ... nan": make(base=float("nan")),
    "ValueError: base ... positive ... 0.0": make(base=0.0),
    "TypeError: base ... Tensor": make(base=torch.tensor(1e4)),
    "ValueError: pairing ... 'interleaved' ... 'half' ... 'neox'": make(pairing="neox"),
    "ValueError: layout ... 'bhsd' ... 'bshd' ... 'sbhd' ... 'bsd'": make(layout="bsd"),
    "TypeError: q must be a torch.Tensor ... list": lambda: ROPE([1.0], X),
    "TypeError: k must be a torch.Tensor ... None": lambda: ROPE(X, None),
    "TypeError: q must ... floating ... int64": lambda: ROPE(X.long(), X),
    "TypeError: k must ... real ... complex64": lambda: ROPE(X, X.cfloat()),
    "TypeError: x must ... bool": lambda: ROPE.rotate(X.bool()),
    "ValueError: q must ... head_dim=8 ... (2, 4, 5, 6)": lambda: ROPE(X[..., :6], X),
    "ValueError: k must ... head_dim=8 ... (2, 4, 5, 6)": lambda: ROPE(X, X[..., :6]),
    "ValueError: q must ... (batch, heads, seq ... (5, 8)": lambda: ROPE(
        X[0, 0], X[0, 0]
    ),
    "ValueError: x must ... (1, 2, 4, 5, 8)": lambda: ROPE.rotate(X[None]),
    "ValueError: q and k ... cpu ... meta": lambda: ROPE(X, X.to("meta")),
    "ValueError: q has 5 ... k has 3 ... (q_positions, k_positions)": lambda: ROPE(
        X, SHORT
    ),
    "ValueError: q has 4 ... k has 2 ... 'bhsd'": lambda: SWAPPED(X, X[:, :2]),
    "ValueError: positions ... seq=3 ... (5,)": lambda: ROPE(X, SHORT, (STEPS, STEPS)),
    "ValueError: positions ... pair ... 3 items": lambda: ROPE(X, X, (STEPS,) * 3),
    "ValueError: positions ... tensor ... 5 items": lambda: ROPE(X, X, [0, 1, 2, 3, 4]),
    "TypeError: positions ... torch.Tensor ... int": lambda: ROPE(X, X, 3),
    "ValueError: positions ... seq=5 ... (1,)": lambda: ROPE(X, X, STEPS[:1]),
    "ValueError: positions ... seq=5 ... ()": lambda: ROPE(X, X, STEPS[0]),
    "ValueError: (batch, seq) ... (1, 2, 5)": lambda: ROPE(X, X, EACH[None]),
    "ValueError: positions ... (4, 5)": lambda: ROPE(X, X, STEPS.expand(4, 5)),
    "ValueError: positions ... seq=5 ... (2,)": lambda: ROPE(X, X, STEPS[:2]),
    "ValueError: positions ... (2, 5)": lambda: ROPE(X[0], X[0], EACH),
    "ValueError: positions ... cpu ... meta": lambda: ROPE(X, X, STEPS.to("meta")),
    "TypeError: positions ... bfloat16 ... 256": lambda: ROPE(X, X, STEPS.bfloat16()),
    "TypeError: positions ... bool": lambda: ROPE(X, X, STEPS > 2),
    "ValueError: positions ... start ... not both": lambda: ROPE(X, X, STEPS, start=3),
    "ValueError: pad_len ... not both": lambda: ROPE(X, X, STEPS, pad_len=STEPS[:2]),
    "TypeError: start ... int ... (batch,) ... 1.0": lambda: ROPE(X, X, start=1.0),
    "TypeError: start ... int ... bool": lambda: ROPE(X, X, start=True),
    "TypeError: start ... int ... None": lambda: ROPE(X, X, start=None),
    "ValueError: start ... (batch,) ... (5,)": lambda: ROPE(X, X, start=STEPS),
    "ValueError: start ... (2, 1)": lambda: ROPE(X, X, start=STEPS[:2, None]),
    "TypeError: start ... bfloat16": lambda: ROPE(X, X, start=STEPS[:2].bfloat16()),
    "TypeError: pad_len ... (batch,) ... list": lambda: ROPE(X, X, pad_len=[0, 2]),
    "ValueError: pad_len ... (5,)": lambda: ROPE(X, X, pad_len=STEPS),
    "ValueError: pad_len ... got (4,) for an input without a batch": lambda: ROPE(
        X[0], X[0], pad_len=STEPS[:4]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, refuses):
    refuses(BAD[message], message)


@pytest.mark.parametrize(
    "name, also",
    [
        ("base", {}),
        ("xpos_scale_base", {}),
        ("xpos_origin", {"xpos_scale_base": 512}),
        ("attention_factor", {"inv_freq": torch.ones(4)}),
    ],
)
def test_each_number_of_the_module_is_checked(name, also, refuses):
    for value, kind in (("2", "TypeError"), (math.nan, "ValueError")):
        refuses(
            lambda value=value: RotaryEmbedding(8, **also, **{name: value}),
            f"{kind}: {name} must be ... {value}",
        )


def test_positions_with_a_gradient_get_it():
    """By the formula: the operator that makes rows has no gradient of its own."""
    x = sample(1, 1, 5, 8, dtype=torch.float64)
    places = (torch.arange(5.0) + 0.5).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            turned = RotaryEmbedding(8).rotate(x.to(dtype), places)
            (got,) = torch.autograd.grad((turned * x.flip(-1)).sum(), places)
            if dtype == torch.float64:
                exact = got
            torch.testing.assert_close(got, exact, rtol=0, atol=tolerance)
    step = torch.zeros(5, dtype=torch.float64)
    step[2] = 1e-6
    wide = places.detach().double()
    ahead, behind = (
        (RotaryEmbedding(8).rotate(x, at) * x.flip(-1)).sum()
        for at in (wide + step, wide - step)
    )
    assert abs((ahead - behind) / 2e-6 - exact[2]) < 1e-5


def test_a_module_from_a_device_that_is_not_here_loads_on_the_cpu(monkeypatch):
    rope = RotaryEmbedding(8)
    state = {**rope.__getstate__(), "_rows": torch.device("xpu", 7)}
    monkeypatch.setattr(RotaryEmbedding, "__getstate__", lambda self: state)
    x = sample(1, 2, 5, 8)
    assert torch.equal(pickle.loads(pickle.dumps(rope)).rotate(x), rope.rotate(x))


# -------------------------------------------------------------------------- xPos


def faded_scores(rope, q, k, **where):
    q, k = rope(q, k, **where)
    return q.double() @ k.double().mT


def test_xpos_fades_by_the_papers_scale():
    zeta = (2 * torch.arange(8).double() + 0.4 * 16) / (1.4 * 16)
    x = sample(1, 1, 9, 16, dtype=F64)
    rope, plain = RotaryEmbedding(16, xpos_scale_base=512), RotaryEmbedding(16)
    by = (zeta ** (torch.arange(9).double()[:, None] / 512)).repeat_interleave(2, -1)
    close(rope.rotate(x, role="query"), plain.rotate(x) * by, 1e-12)
    close(rope.rotate(x, role="key"), plain.rotate(x) / by, 1e-12)
    assert zeta[[0, 7]].tolist() == pytest.approx([0.4 / 1.4, 20.4 / 22.4])


@both_pairings
@pytest.mark.parametrize("start", [10, 100_000])
def test_xpos_scores_depend_on_the_distance_alone(pairing, start):
    q, k = sample(2, 1, 2, 64, 16, dtype=F64).unbind()
    rope = RotaryEmbedding(16, xpos_scale_base=512, pairing=pairing)
    first, later = (faded_scores(rope, q, k, start=at) for at in (0, start))
    close(later, first, 1e-7)
    there = RotaryEmbedding(16, xpos_scale_base=512, xpos_origin=start, pairing=pairing)
    for dtype, atol in ((torch.float32, 3e-5), (torch.float16, 3e-2)):
        near = faded_scores(there, q.to(dtype), k.to(dtype), start=start)
        close(near, first, atol)


def test_xpos_keys_that_were_cached_stay_valid():
    """The origin is fixed, so a key has one scale, however long the text becomes."""
    rope = RotaryEmbedding(16, xpos_scale_base=512)
    q, k = sample(2, 1, 2, 700, 16).unbind()
    whole_q, whole_k = rope(q, k)
    for at in (0, 1, 350, 699):
        step_q, step_k = rope(q[:, :, [at]], k[:, :, [at]], start=at)
        assert torch.equal(step_q, whole_q[:, :, [at]])
        assert torch.equal(step_k, whole_k[:, :, [at]])


def test_xpos_in_float16_is_finite_as_far_as_it_goes():
    rope = RotaryEmbedding(16, xpos_scale_base=512, xpos_origin=3_300)
    q, k = sample(2, 1, 2, 6_600, 16, dtype=torch.float16).unbind()
    turned = rope(q, k)
    assert all(x.isfinite().all() and x.dtype == torch.float16 for x in turned)
    exact = faded_scores(rope, q[:, :, -64:].double(), k[:, :, -64:].double(), start=9)
    got = turned[0][:, :, -64:].double() @ turned[1][:, :, -64:].double().mT
    close(got, exact, 3e-2)


def test_files_and_copies_hold_no_rows():
    rope, q = RotaryEmbedding(64), sample(1, 1, 1, 64)
    expected = rope(q, q, start=70_000)[0]
    assert rope._rows.table.shape[0] > 70_000
    assert len(pickle.dumps(rope)) < 20_000
    for twin in (pickle.loads(pickle.dumps(rope)), copy.deepcopy(rope)):
        assert twin(q, q, start=70_000)[0].equal(expected)


def test_learned_frequencies_in_16_bits_are_refused(refuses):
    rope, q = RotaryEmbedding(8, learned=True), sample(1, 1, 3, 8)
    rounded = {"frequencies": rope.frequencies.detach().bfloat16()}
    rope.load_state_dict(rounded)  # into float32: the numbers are rounded, no more
    assert rope(q, q)[0].isfinite().all()
    rope.load_state_dict(rounded, assign=True)
    refuses(
        lambda: rope(q, q),
        "TypeError: frequencies must be float32, got torch.bfloat16",
    )


def test_xpos_past_its_reach_is_refused_or_cannot_be_missed(refuses):
    rope = RotaryEmbedding(16, xpos_scale_base=512)
    x = sample(1, 1, 1, 16, dtype=torch.float16)
    rope(x, x, start=3_399)
    refuses(
        lambda: rope(x, x, start=3_401),
        "ValueError: torch.float16 holds ... up to 3399 tokens ... got a position 3401 "
        "away: set xpos_origin",
    )
    rope(x.float(), x.float(), start=27_000)
    refuses(
        lambda: rope(x.float(), x.float(), start=28_000),
        "ValueError: torch.float32 holds ... up to 27195 tokens",
    )
    compiled = torch.compile(rope, fullgraph=True, backend="aot_eager")
    positions = torch.tensor([28_000])
    assert all(y.isnan().all() for y in compiled(x.float(), x.float(), positions))


def test_xpos_needs_to_know_queries_from_keys(refuses):
    rope = RotaryEmbedding(16, xpos_scale_base=512)
    message = "ValueError: xPos scales ... role must be 'query' or 'key', got None"
    refuses(lambda: rope.rotate(sample(1, 1, 3, 16)), message)
    for base in (0.0, -1.0, float("nan")):
        refuses(
            lambda base=base: RotaryEmbedding(16, xpos_scale_base=base),
            "ValueError: xpos_scale_base must be positive and finite",
        )


def test_xpos_backward_is_the_transpose():
    rope = RotaryEmbedding(8, xpos_scale_base=64, pairing="half")
    q, k = sample(2, 1, 1, 5, 8, dtype=F64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda q, k: rope(q, k, start=40), (q, k))


# ------------------------------------------------------------ one call after another


def test_calls_of_other_kinds_in_turn_leave_one_another_alone():
    rope = RotaryEmbedding(16)
    q, k = sample(1, 2, 1, 16), sample(1, 1, 1, 16, seed=1)

    def right(start, q=q, k=k):
        turned = rope(q, k, start=start)
        for got, x in zip(turned, (q, k), strict=True):
            close(got, oracle(x, torch.arange(x.shape[2]) + start))

    for start in (0, 1, SMALLEST_TABLE - 1, SMALLEST_TABLE, 5, LARGEST_TABLE, -1):
        right(start)
        right(start)
    right(7, sample(1, 2, 3, 16), sample(1, 1, 3, 16))
    right(7, q.double(), k.double())
    right(7)
    rope.half()
    right(7)
    with pytest.raises(ValueError, match="head_dim=16"):
        rope(q[..., :8], k, start=7)
    with pytest.raises(TypeError, match="start must be"):
        rope(q, k, start=7.0)
    assert pickle.loads(pickle.dumps(rope))(q, k, start=7)[0].equal(
        copy.deepcopy(rope)(q, k, start=7)[0]
    )


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "sbhd"])
@pytest.mark.parametrize("empty", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)])
def test_a_single_pair_of_nothing_is_nothing(empty, layout):
    """The strides of an empty complex product are not those of its features."""
    rope = RotaryEmbedding(2, layout=layout)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.empty(*empty, 2, dtype=dtype)
        for turned in rope(x, x.clone()):
            assert turned.shape == x.shape and turned.dtype == dtype
