"""RotaryEmbedding: ready tables, given memory, options, and rows that modules share."""

import copy
import pickle
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rope_teach import RotaryEmbedding, inverse_frequencies, rotate
from rope_teach.frequencies import yarn
from rope_teach.rotary import SMALLEST_TABLE, SharedRows, Tables
from tests.samples import (
    F64,
    all_close,
    both_pairings,
    close,
    each_layout,
    from_layout,
    oracle,
    queries_and_keys,
    sample,
    to_layout,
)

STEPS = torch.arange(5)
EACH = torch.tensor([[4, 0, 1, 9, 2], [7, 7, 0, -3, 1_000_000]])
STARTS, PADS = torch.tensor([3, 5_000]), torch.tensor([0, 2])


# ---------------------------------------------------------------------- ready tables

WAYS = {
    "from zero": {},
    "start": {"start": 7},
    "negative start": {"start": -3},
    "past every table": {"start": 9_999_999},
    "start as a tensor": {"start": torch.tensor(7)},
    "start of each": {"start": STARTS},
    "left padding": {"pad_len": PADS},
    "padding and start": {"pad_len": PADS, "start": 40},
    "padding and start of each": {"pad_len": PADS, "start": STARTS},
    "one row": {"positions": EACH[0]},
    "a row for each": {"positions": EACH},
    "fractions": {"positions": EACH / 4},
    "int32": {"positions": EACH.int()},
    "their own": {"positions": (EACH, STEPS + 2)},
}
OPTIONS = {
    "plain": {},
    "partial": {"rotary_dim": 4, "pairing": "half"},
    "trailing": {"rotary_dim": 4, "trailing": True},
    "clockwise": {"clockwise": True, "pairing": "half"},
    "learned": {"learned": True},
    "xpos": {"xpos_scale_base": 1e6},
    "scaled": {"scaling": lambda r, b: yarn(r, b, factor=4, trained_length=64)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_ready_tables_equal_the_direct_call(way, options):
    way = WAYS[way]
    for layout, dtype in (("bhsd", torch.float32), ("sbhd", F64), ("bshd", F64)):
        rope = RotaryEmbedding(8, layout=layout, **OPTIONS[options])
        q, k = (to_layout(x, layout) for x in queries_and_keys(dtype=dtype))
        tables = rope.tables(seq=5, dtype=dtype, **way)
        assert all(t is None or t.dtype == dtype for t in tables)
        direct = rope(q, k, **way)
        for got, expected in zip(rope(q, k, tables=tables), direct, strict=True):
            assert torch.equal(got, expected)
        alone = rope.rotate(k, tables=tables, role="key")
        assert torch.equal(alone, direct[1])


def test_one_row_of_tables_serves_any_batch_and_none():
    rope, tables = RotaryEmbedding(8), RotaryEmbedding(8).tables(EACH[0])
    q, k = queries_and_keys()
    for ready in (tables, Tables(*(t[None] for t in tables[:2]))):
        all_close(rope(q, k, tables=ready), rope(q, k, EACH[0]), 0)
        all_close(rope(q, k[:1], tables=ready), rope(q, k[:1], EACH[0]), 0)
    all_close(rope(q[0], k[0], tables=tables), rope(q[0], k[0], EACH[0]), 0)


@each_layout
def test_ready_tables_where_one_input_has_no_batch(layout):
    """Queries of a batch against keys that all of it shares."""
    rope, (q, k) = RotaryEmbedding(8, layout=layout), queries_and_keys()
    alone = k[0] if layout == "bhsd" else k[0].transpose(0, 1)
    q_out, k_out = rope(to_layout(q, layout), alone, tables=rope.tables(seq=5))
    close(from_layout(q_out, layout), oracle(q, STEPS))
    exact = oracle(k[:1], STEPS)[0]
    close(k_out, exact if layout == "bhsd" else exact.transpose(0, 1))


X = torch.zeros(2, 4, 5, 8)
ROPE = RotaryEmbedding(8)
WRONG = {
    "TypeError: RotaryEmbedding.tables ... got tuple": (torch.ones(5, 4),) * 2,
    "ValueError: (4, 4) ... seq=5": ROPE.tables(seq=4),
    "ValueError: (5, 2) ... r/2=4": RotaryEmbedding(4).tables(seq=5),
    "ValueError: (3, 5, 4) ... (2, 4, 5, 8)": ROPE.tables(STEPS.expand(3, 5)),
    "ValueError: (6, 4) ... (2, 4, 5, 8)": Tables(
        *ROPE.tables(seq=5)[:2], *ROPE.tables(seq=6)[:2]
    ),
    "ValueError: tables are on meta ... cpu": ROPE.tables(seq=5, device="meta"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_tables_are_named(message, refuses):
    refuses(lambda: ROPE(X, X, tables=WRONG[message]), message)


def test_tables_and_positions_exclude_one_another(refuses):
    tables = ROPE.tables(seq=5)
    for more in ({"positions": STEPS}, {"start": 3}, {"pad_len": PADS}):
        refuses(
            lambda more=more: ROPE(X, X, tables=tables, **more),
            "ValueError: give tables, or positions, start and pad_len",
        )
        for places in (STEPS, (STEPS, STEPS)):
            if "positions" not in more:
                refuses(
                    lambda more=more, p=places: ROPE.tables(p, **more),
                    "ValueError: positions ... not both",
                )
    refuses(
        lambda: ROPE(X, X, tables=tables, start=torch.tensor([1, 2])),
        "ValueError: give tables, or positions, start and pad_len",
    )
    for more in ({"positions": STEPS}, {"start": 3}, {"pad_len": PADS}):
        refuses(
            lambda more=more: ROPE.rotate(X, tables=tables, **more),
            "ValueError: give tables, or positions, start and pad_len",
        )
    refuses(lambda: ROPE.tables(), "ValueError: tables needs positions, or seq")
    refuses(lambda: ROPE.tables(seq=-1), "ValueError: seq ... -1")
    refuses(lambda: ROPE.tables(seq=5.0), "TypeError: seq must be an int, got float")
    refuses(lambda: ROPE.tables((STEPS,)), "ValueError: pair ... 1 items")
    one_batch = ROPE.tables(EACH)
    refuses(lambda: ROPE(X[0], X[0], tables=one_batch), "ValueError: (2, 5, 4)")


# ----------------------------------------------------------------------- given memory


def with_strides(x, kind):
    """Memory of another shape than ``x`` stored row by row, with a last stride of 1."""
    if kind == "a slot of a cache":
        return torch.full((*x.shape[:2], 9, 8), 7.0, dtype=x.dtype)[:, :, 3:8]
    if kind == "token by token":
        return torch.full_like(x.transpose(1, 2).contiguous(), 7.0).transpose(1, 2)
    if kind == "wide rows":
        return torch.full((*x.shape[:3], 11), 7.0, dtype=x.dtype)[..., 1:9]
    return torch.full_like(x, 7.0)


@both_pairings
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "kind", ["own", "a slot of a cache", "token by token", "wide rows"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_results_go_where_they_are_told(kind, options, pairing, dtype):
    rope = RotaryEmbedding(8, **{**OPTIONS[options], "pairing": pairing})
    q, k = queries_and_keys(dtype=dtype)
    with torch.no_grad():
        expected = rope(q, k, EACH)
        for wanted in ((True, True), (False, True), (True, False), (False, False)):
            out = [
                with_strides(x, kind) if want else None
                for x, want in zip((q, k), wanted, strict=True)
            ]
            got = rope(q, k, EACH, out=tuple(out))
            for into, x, exact in zip(out, got, expected, strict=True):
                assert into is None or x is into
                torch.testing.assert_close(x, exact)  # to a unit in the last place


@each_layout
def test_a_slot_of_a_cache_in_every_layout(layout):
    rope, (q, k) = RotaryEmbedding(8, layout=layout), queries_and_keys()
    cache = to_layout(torch.full((2, 2, 9, 8), 7.0), layout).contiguous()
    slot = from_layout(cache, layout)[:, :, 3:8]
    given = [to_layout(x, layout) for x in (q, k)]
    rope(*given, out=(None, to_layout(slot, layout)))
    close(slot, oracle(k, STEPS))
    whole = from_layout(cache, layout)
    assert (whole[:, :, :3] == 7).all() and (whole[:, :, 8:] == 7).all()


def test_large_tensors_go_straight_into_given_memory():
    for pairing in ("half", "interleaved"):
        rope = RotaryEmbedding(64, pairing=pairing)
        q, k = queries_and_keys(1, 8, 2, 1024, 64)
        out = torch.empty(1, 1024, 8, 64).transpose(1, 2), torch.empty_like(k)
        rope(q, k, out=out)
        all_close(out, [oracle(x, torch.arange(1024), pairing) for x in (q, k)], 1e-5)


def memory():
    return torch.zeros(2 * 2 * 4 * 5 * 8)


def overlapping():
    """Cases that share memory, and pairs that only look so."""
    flat = memory()
    q = flat[:320].view(2, 4, 5, 8)
    packed = torch.zeros(2, 4, 5, 24)  # q, k and v side by side
    parts = packed.split(8, dim=-1)
    apart = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 5, 8)
    rows = torch.zeros(2, 4, 10, 8)
    return {
        "out is q": (True, q, apart[0], (q, None)),
        "out is k": (True, apart[0], q, (None, q)),
        "q_out is k": (True, apart[0], q, (q, None)),
        "shifted by a row": (True, q, apart[0], (flat[8:328].view(2, 4, 5, 8), None)),
        "both are one": (True, *apart, (q, q)),
        "both meet": (True, *apart, (q, flat[312:632].view(2, 4, 5, 8))),
        "other half": (False, q, apart[0], (flat[320:].view(2, 4, 5, 8), None)),
        "beside it in a row": (False, parts[0], parts[1], (parts[2], None)),
        "every other token": (
            False,
            rows[:, :, ::2],
            apart[0],
            (rows[:, :, 1::2], None),
        ),
        "next tokens": (False, rows[:, :, :5], rows[:, :, :5], (rows[:, :, 5:], None)),
    }


@pytest.mark.parametrize("case", overlapping())
def test_memory_that_is_shared_is_refused_and_only_that(case, refuses):
    shares, q, k, out = overlapping()[case]
    if shares:
        refuses(lambda: ROPE(q, k, out=out), "ValueError: out shares memory")
        own = {"positions": (STEPS, STEPS + 1)}  # q and k are rotated one by one
        refuses(lambda: ROPE(q, k, out=out, **own), "ValueError: out shares memory")
        return
    q.copy_(sample(2, 4, 5, 8))
    expected = ROPE(q.clone(), k.clone())
    all_close(ROPE(q, k, out=out), expected)


UNFIT = {
    "TypeError: out must hold tensors, got int": lambda: (3, None),
    "ValueError: out ... shape ... (2, 4, 5, 8) ... (2, 4, 6, 8)": lambda: (
        torch.zeros(2, 4, 6, 8), None,
    ),
    "ValueError: out ... dtype, torch.float32, got torch.bfloat16": lambda: (
        None, X.bfloat16(),
    ),
    "ValueError: out ... device, cpu, got meta": lambda: (X.to("meta"), None),
    "ValueError: out ... last stride of 1 ... strides": lambda: (
        torch.zeros(2, 4, 5, 16)[..., ::2], None,
    ),
    "ValueError: out ... overlap itself": lambda: (
        torch.zeros(1, 4, 5, 8).expand(2, 4, 5, 8), None,
    ),
    "ValueError: out ... overlap itself ... (160, 40, 4, 1)": lambda: (
        torch.zeros(999).as_strided((2, 4, 5, 8), (160, 40, 4, 1)), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", UNFIT)
def test_memory_that_does_not_fit_is_refused(message, refuses):
    refuses(lambda: ROPE(X, X.clone(), out=UNFIT[message]()), message)


@pytest.mark.parametrize("out", [(X.clone(),), X.clone(), (None,) * 3])
def test_out_is_a_pair(out):
    for where in ({}, {"positions": (STEPS, STEPS)}):
        with pytest.raises(TypeError, match=r"out must be a pair \(q_out, k_out\)"):
            ROPE(X, X.clone(), out=out, **where)


def test_norms_and_out_together():
    norms = [nn.RMSNorm(8) for _ in range(2)]
    norms[1].weight.data += sample(8)
    q, k = queries_and_keys()
    out = torch.empty_like(q), torch.empty_like(k)
    with torch.no_grad():
        all_close(ROPE(q, k, norms=norms, out=out), ROPE(q, k, norms=norms), 1e-6)
        all_close(out, ROPE(norms[0](q), norms[1](k)), 1e-6)


# ---------------------------------------------------------------------------- options


@both_pairings
@pytest.mark.parametrize("way", ["start", "positions"])
@pytest.mark.parametrize("learned", [False, True])
def test_clockwise_is_the_opposite_angle(pairing, way, learned):
    q, k = queries_and_keys()
    rope = RotaryEmbedding(8, pairing=pairing, clockwise=True, learned=learned)
    given = {"start": 7} if way == "start" else {"positions": EACH}
    positions = STEPS + 7 if way == "start" else EACH
    exact = [oracle(x, -positions, pairing) for x in (q, k)]
    # A learned frequency is float32: at a position of a million that is a whole turn.
    if learned and way == "positions":
        given, positions = {"positions": EACH % 10}, EACH % 10
        exact = [oracle(x, -positions, pairing) for x in (q, k)]
    all_close(rope(q, k, **given), exact, 1e-5)
    close(rope.inv_freq, inverse_frequencies(8))
    assert "clockwise=True" in repr(rope)
    assert "clockwise" not in repr(RotaryEmbedding(8))


@both_pairings
@each_layout
def test_trailing_features_are_rotated_and_the_others_pass(pairing, layout):
    rope = RotaryEmbedding(
        8, rotary_dim=6, trailing=True, pairing=pairing, layout=layout
    )
    q, k = queries_and_keys()
    for dtype in (torch.float32, torch.float16):
        given = [to_layout(x, layout).to(dtype) for x in (q, k)]
        turned = rope(*given, EACH)
        for got, x in zip(turned, given, strict=True):
            assert torch.equal(got[..., :2], x[..., :2])
            exact = oracle(from_layout(x, layout)[..., 2:], EACH, pairing)
            atol = 1e-6 if dtype == torch.float32 else 2e-3
            close(from_layout(got[..., 2:], layout), exact, atol)
    whole = RotaryEmbedding(8, trailing=True, pairing=pairing)
    all_close(whole(q, k), RotaryEmbedding(8, pairing=pairing)(q, k), 0)
    assert "trailing=True" in repr(rope)


@both_pairings
def test_seq_first_equals_the_other_layouts(pairing):
    q, k = queries_and_keys(batch=3, seq=4)
    expected = RotaryEmbedding(8, pairing=pairing)(q, k, start=5)
    rope = RotaryEmbedding(8, pairing=pairing, layout="sbhd")
    got = rope(to_layout(q, "sbhd"), to_layout(k, "sbhd"), start=5)
    all_close([from_layout(x, "sbhd") for x in got], expected, 1e-6)
    alone = rope(q[0].transpose(0, 1), k[0].transpose(0, 1), start=5)
    all_close([x.transpose(0, 1) for x in alone], [x[0] for x in expected], 1e-6)
    tables = RotaryEmbedding(8).tables(EACH[:, :4])[:2]
    x = to_layout(q[:2], "sbhd")
    turned = from_layout(rotate(x, *tables, pairing, layout="sbhd"), "sbhd")
    close(turned, oracle(q[:2], EACH[:, :4], pairing))


def of_sections(sections, base=1e4):
    """M-RoPE: one bank of frequencies, dealt to the axes section by section."""
    bank = inverse_frequencies(2 * sum(sections), base)
    dealt = torch.zeros(len(sections), len(bank), dtype=F64)
    for axis, part in enumerate(torch.arange(len(bank)).split(sections)):
        dealt[axis, part] = bank[part]
    return dealt


@both_pairings
def test_positions_of_images_and_text_as_transformers_gives_them(pairing):
    rope = RotaryEmbedding(16, inv_freq=of_sections([2, 3, 3]), pairing=pairing)
    q, k = queries_and_keys(head_dim=16)
    places = torch.randint(0, 99, (3, 2, 5), generator=torch.Generator())
    expected = rope(q, k, places.movedim(0, -1))
    all_close(rope(q, k, places), expected, 0)
    for axis, part in enumerate(torch.arange(8).split([2, 3, 3])):
        pairs = (
            (2 * part, 2 * part + 1) if pairing == "interleaved" else (part, part + 8)
        )
        features = torch.cat(pairs)
        exact = oracle(q, places[axis], pairing)
        close(expected[0][..., features], exact[..., features])
    for text in (EACH, EACH[0], EACH[:1]):
        all_close(rope(q, k, text), [oracle(x, text, pairing) for x in (q, k)])
    for way in ({"start": 7}, {"start": STARTS}, {"pad_len": PADS}):
        plain = RotaryEmbedding(16, pairing=pairing)
        all_close(rope(q, k, **way), plain(q, k, **way))
        all_close(rope(q, k, tables=rope.tables(seq=5, **way)), plain(q, k, **way))


def test_mrope_takes_an_attention_factor():
    bank = of_sections([2, 3, 3])
    q, k = queries_and_keys(head_dim=16)
    places = torch.randint(0, 99, (3, 2, 5), generator=torch.Generator())
    plain = RotaryEmbedding(16, inv_freq=bank)
    rope = RotaryEmbedding(16, inv_freq=bank, attention_factor=1.25)
    all_close(rope(q, k, places), [1.25 * x for x in plain(q, k, places)])
    assert rope.attention_factor == 1.25 and "attention_factor=1.25" in repr(rope)
    single = RotaryEmbedding(16, inv_freq=bank.sum(0), attention_factor=1.25)
    all_close(rope(q, k, EACH), single(q, k, EACH))
    with pytest.raises(ValueError, match="attention_factor goes with inv_freq"):
        RotaryEmbedding(16, attention_factor=1.25)


def test_shapes_that_can_be_read_in_two_ways_are_refused(refuses):
    rope = RotaryEmbedding(16, inv_freq=of_sections([2, 3, 3]))
    x = torch.zeros(3, 2, 3, 16)
    message = "ValueError: positions of shape ... can be read as ... and as"
    refuses(lambda: rope(x, x, torch.zeros(3, 3, 3)), message)
    refuses(lambda: rope.tables(torch.zeros(3, 4, 3)), message)
    rope.tables(torch.zeros(3, 4, 3), seq=4)
    x = torch.zeros(2, 2, 3, 16)
    axial = RotaryEmbedding(16, axes=2)
    refuses(lambda: axial(x, x, torch.zeros(2, 3)), "ValueError: positions must be")
    refuses(lambda: axial(x, x, start=3), "ValueError: 2 coordinates")
    refuses(lambda: rope(x, x, torch.zeros(4, 2, 3)), "ValueError: positions must be")


@pytest.mark.parametrize("options", [{}, {"axes": 2}, {"clockwise": True}])
def test_parameters_can_be_reset_after_meta(options):
    rope = RotaryEmbedding(8, learned=True, base=500, **options)
    before = rope.frequencies.detach().clone()
    assert torch.equal(rope.inv_freq.float(), before)
    with torch.device("meta"):
        empty = RotaryEmbedding(8, learned=True, base=500, **options)
    assert empty.frequencies.is_meta
    empty = empty.to_empty(device="cpu")
    empty.frequencies.data.fill_(torch.nan)
    empty.reset_parameters()
    assert torch.equal(empty.frequencies, before)
    assert empty.frequencies.requires_grad and empty.frequencies.dtype == torch.float32
    model = nn.Sequential(rope)
    rope.frequencies.data.mul_(3)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(rope.frequencies, before)
    q, k = queries_and_keys()
    places = (
        EACH % 50 if "axes" not in options else (EACH % 50)[..., None].expand(2, 5, 2)
    )
    all_close(empty(q, k, places), rope(q, k, places), 0)
    RotaryEmbedding(8).reset_parameters()  # nothing to reset


def test_inverse_frequencies_have_one_device():
    for options in ({}, {"axes": 2}, {"clockwise": True}, {"inv_freq": torch.ones(4)}):
        with torch.device("meta"):
            made = RotaryEmbedding(8, **options)
        for rope in (RotaryEmbedding(8, **options), made, made.to("meta")):
            assert rope.inv_freq.device.type == "cpu" and rope.inv_freq.dtype == F64
            assert not rope.inv_freq.requires_grad
    rope = RotaryEmbedding(8)
    rope.rotate(torch.zeros(1, 1, 3, 8, device="meta"))
    rope.inv_freq.mul_(2)  # a copy: nothing of the module changes
    close(rope.inv_freq, inverse_frequencies(8))
    learned = RotaryEmbedding(8, learned=True)
    assert learned.inv_freq.requires_grad


# ----------------------------------------------------------------- rows that are shared


def test_copies_files_and_threads_share_rows():
    rope, x = RotaryEmbedding(8, base=8_765), sample(1, 1, 1, 8)
    expected = rope.rotate(x, start=9_000)
    copies = [
        copy.deepcopy(rope),
        copy.copy(rope),
        pickle.loads(pickle.dumps(rope)),
        *copy.deepcopy(nn.ModuleList([rope, rope])),
    ]
    assert all(twin._rows is rope._rows for twin in copies)
    assert all(torch.equal(twin.rotate(x, start=9_000), expected) for twin in copies)
    found, begin = [], threading.Barrier(8)

    def work(seed):
        begin.wait()  # all at once: the first rows, then more of them
        mine = RotaryEmbedding(8, base=5_678)
        for start in (0, 3_000, 5_000 + seed, 9_000):
            place = torch.tensor([start])
            one, other = mine.rotate(x, start=start), mine.rotate(x, place)
            close(one, oracle(x, place, base=5_678))
            close(other, oracle(x, place, base=5_678))
        found.append(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    later = RotaryEmbedding(8, base=5_678)
    assert later._rows in {mine._rows for mine in found}


def grow_in(name, rope, x):
    """Let the rows grow where what is made may not outlive the call."""
    far = {"start": 3 * SMALLEST_TABLE}
    if name == "vmap":
        torch.vmap(lambda x: rope.rotate(x, **far))(x)
    elif name == "grad":
        torch.func.grad(lambda x: rope.rotate(x, **far).sum())(x)
    elif name == "grad of vmap":
        turn = torch.vmap(lambda x: rope.rotate(x, **far))
        torch.func.grad(lambda x: turn(x).sum())(x)
    elif name == "jvp":
        torch.func.jvp(lambda x: rope.rotate(x, **far), (x,), (x,))
    elif name == "fake":
        with FakeTensorMode() as mode:
            rope.rotate(mode.from_tensor(x), **far)
    elif name == "fake, a real tensor":
        with FakeTensorMode(allow_non_fake_inputs=True):
            rope.rotate(x, **far)
    elif name.startswith("make_fx"):
        mode = name.split()[1]
        make_fx(lambda x: rope.rotate(x, **far), tracing_mode=mode)(x)
    elif name == "inference":
        with torch.inference_mode():
            rope.rotate(x, **far)
    elif name == "functionalize":
        torch.func.functionalize(lambda x: rope.rotate(x, **far))(x)
    elif name == "trace":
        torch.jit.trace(lambda x: rope.rotate(x, **far), x, check_trace=False)
    elif name == "compile":
        call = torch.compile(lambda x: rope.rotate(x, **far), backend="eager")
        call(x)
    elif name == "meta":
        rope.rotate(x.to("meta"), **far)


PLACES = [
    "vmap", "grad", "grad of vmap", "jvp", "fake", "fake, a real tensor",
    "make_fx real", "make_fx fake", "make_fx symbolic", "inference",
    "functionalize", "trace", "compile", "meta",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", PLACES)
def test_rows_never_leave_the_place_that_made_them(name):
    torch.compiler.reset()
    base = 1_000.0 + PLACES.index(name)  # rows of its own
    rope, x = RotaryEmbedding(8, base=base), sample(2, 2, 5, 8)
    grow_in(name, rope, x)
    assert type(rope._rows.table) is torch.Tensor
    assert not rope._rows.table.is_inference() and not rope._rows.table.requires_grad
    for start in (0, 3 * SMALLEST_TABLE):
        places = STEPS + start
        exact = oracle(x, places, base=base)
        close(rope.rotate(x, start=start), exact)
        close(rope.rotate(x, places), exact)
        leaf = x.clone().requires_grad_()
        rope.rotate(leaf, start=start).sum().backward()
        close(leaf.grad, oracle(torch.ones_like(x), -places, base=base))
    copy.deepcopy(rope).rotate(x)
    twin = RotaryEmbedding(8, base=base)  # which may find what was left behind
    close(twin.rotate(x, start=2), oracle(x, STEPS + 2, base=base))


def test_no_rows_are_kept_of_what_is_not_real():
    before = set(SharedRows._all.keys())
    with FakeTensorMode():
        ROPE.rotate(torch.empty(1, 2, 5, 8), start=3 * SMALLEST_TABLE)
    with torch.device("meta"):
        made = RotaryEmbedding(8, base=2_223)
    fresh = [key for key in SharedRows._all.keys() if key not in before]
    assert all(SharedRows._all[key].table.device.type != "meta" for key in fresh)
    x = sample(1, 2, 5, 8)
    close(made.rotate(x), oracle(x, STEPS, base=2_223))


MADE = {
    "plain": {},
    "a rule": {"scaling": partial(yarn, factor=4, trained_length=4096)},
    "several axes": {"axes": 2},
    "its own": {"inv_freq": torch.tensor([0.3, 0.2, 0.1, 0.05])},
    "clockwise": {"clockwise": True},
    "xPos": {"xpos_scale_base": 512},
}


@pytest.mark.parametrize("options", MADE.values(), ids=MADE)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_module_made_of_fakes_serves_fakes_and_real_tensors(options, device):
    places = torch.tensor([[2, 7, 1], [8, 2, 8]]).mT if "axes" in options else STEPS[:3]
    with FakeTensorMode(), torch.device(device):
        made, x = RotaryEmbedding(8, base=3_331, **options), torch.empty(1, 2, 3, 8)
        fake = made(x, x, torch.zeros(places.shape))
        assert all(y.shape == x.shape and y.device == x.device for y in fake)
        copied = copy.deepcopy(made)
    q, k = sample(2, 1, 2, 3, 8).unbind()
    expected = RotaryEmbedding(8, base=3_331, **options)(q, k, places)
    for rope in (made, copied):
        assert all(map(torch.equal, rope(q, k, places), expected))
    if "axes" not in options:
        plain = RotaryEmbedding(8, base=3_331, **options)
        assert all(map(torch.equal, made(q, k, start=4), plain(q, k, start=4)))


@pytest.mark.parametrize("mode", [FakeTensorMode, lambda: torch.device("meta")])
def test_a_module_without_rows_may_be_compiled_at_once(mode):
    """As when a model is made on meta and its weights are assigned."""
    torch.compiler.reset()
    with mode():
        rope = RotaryEmbedding(8, base=3_332)
    call, x = torch.compile(rope, backend="eager", fullgraph=True), sample(1, 2, 5, 8)
    for where in ({"start": 3}, {"positions": STEPS + 3}):
        close(call(x, x, **where)[0], oracle(x, STEPS + 3, base=3_332))


@pytest.mark.parametrize("inside", [True, False])
def test_frequencies_that_are_fakes_have_no_values(inside, refuses):
    with FakeTensorMode():
        inv_freq = torch.ones(4)
    with FakeTensorMode() if inside else nullcontext():
        refuses(
            lambda: RotaryEmbedding(8, inv_freq=inv_freq),
            "ValueError: inv_freq must have values, got ... FakeTensor",
        )


NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_integers_do_not_wrap_around(dtype):
    """As uint8, minus 4 would be 252."""
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys()
    pads, starts = torch.tensor([4, 120], dtype=dtype), torch.tensor([2, 127]).to(dtype)
    tokens = torch.arange(5)
    for given, begin in (
        ({"pad_len": pads}, -pads.long()),
        ({"pad_len": pads, "start": 3}, 3 - pads.long()),
        ({"pad_len": pads, "start": starts}, starts.long() - pads.long()),
        ({"start": starts}, starts.long()),
    ):
        places = begin[:, None] + tokens
        all_close(rope(q, k, **given), [oracle(x, places) for x in (q, k)])
