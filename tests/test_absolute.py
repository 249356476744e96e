import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_teach import (
    LearnedEncoding,
    SinusoidalEncoding,
    alibi_bias,
    inverse_frequencies,
    rotate,
    sinusoidal,
)
from rope_teach.absolute import alibi_slopes
from rope_teach.tables import cos_sin
from tests.test_peers import peer

F64 = torch.float64


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# -------------------------------------------------------------------- sinusoidal


@given(position=st.integers(0, 10_000_000), dim=st.integers(1, 32).map(lambda i: 2 * i))
def test_sinusoidal_is_the_formula(position, dim):
    code = sinusoidal(torch.tensor(position), dim, dtype=F64)
    for i in range(dim // 2):
        angle = position / 10_000 ** (2 * i / dim)
        assert code[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
        assert code[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_sinusoidal_shape_and_dtype():
    assert sinusoidal(torch.zeros(2, 3), 8).shape == (2, 3, 8)
    assert sinusoidal(torch.zeros(2, 0), 8).shape == (2, 0, 8)
    assert sinusoidal(torch.zeros(2), 8).dtype == torch.float32
    assert sinusoidal(torch.zeros(2), 8, dtype=torch.bfloat16).dtype == torch.bfloat16


@given(m=st.integers(0, 1000), k=st.integers(-100, 100))
def test_a_shift_turns_the_code_and_keeps_its_dot_products(m, k):
    here, there = (sinusoidal(torch.tensor([p]), 8, dtype=F64) for p in (m, m + k))
    cos, sin = cos_sin(torch.tensor([-k]), inverse_frequencies(8), F64)
    close(rotate(here, cos, sin), there, 1e-9)  # (sin, cos) turns clockwise
    zero, far = (sinusoidal(torch.tensor([p]), 8, dtype=F64) for p in (0, k))
    close((here * there).sum(), (zero * far).sum(), 1e-9)
    close(here.norm(), torch.tensor(2.0, dtype=F64), 1e-9)  # sqrt(dim / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinusoidal_encoding_adds_the_code(dtype):
    encoding, x = SinusoidalEncoding(8), torch.randn(2, 5, 8, dtype=dtype)
    out = encoding(x, start=3)
    assert out.dtype == dtype
    assert torch.equal(out, x + sinusoidal(torch.arange(3, 8), 8, dtype=dtype))
    assert torch.equal(encoding(x[:, 2:], start=5), out[:, 2:])
    assert encoding(x[:, :0]).shape == (2, 0, 8)
    assert not encoding.state_dict()


def test_positions_may_differ_between_sequences():
    positions = torch.tensor([[0, 1, 2], [4, 0, 1]])
    for encoding in (SinusoidalEncoding(4), LearnedEncoding(5, 4)):
        x = torch.randn(2, 3, 4)
        rows = [encoding(x[i : i + 1], positions=positions[i]) for i in range(2)]
        assert torch.equal(encoding(x, positions=positions), torch.cat(rows))
        assert torch.equal(encoding(x, positions=torch.arange(2, 5)), encoding(x, 2))


# ------------------------------------------------------------------------ learned


def test_learned_encoding_adds_its_rows_and_trains_only_those():
    encoding, x = LearnedEncoding(6, 4), torch.randn(2, 3, 4)
    out = encoding(x, start=2)
    assert torch.equal(out, x + encoding.weight[2:5])
    out.sum().backward()
    assert encoding.weight.grad.sum(-1).tolist() == [0, 0, 8, 8, 8, 0]
    assert list(encoding.state_dict()) == ["weight"]


def test_the_wall_of_a_learned_encoding(refuses):
    encoding, x = LearnedEncoding(6, 4), torch.zeros(1, 6, 4)
    assert encoding(x).shape == (1, 6, 4)
    past = "ValueError: positions 1 to 6 ... max_len=6 rows (0 to 5)"
    refuses(lambda: encoding(x, start=1), past)
    before = "ValueError: positions -1 to -1 ... max_len=6"
    refuses(lambda: encoding(x[:, :1], start=-1), before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_are_looked_up_in_any_order(dtype):
    encoding, x = LearnedEncoding(300, 4), torch.randn(2, 5, 4)
    positions = torch.tensor([[299, 0, 7, 7, 1], [5, 4, 3, 2, 298]], dtype=dtype)
    expected = torch.stack(
        [torch.stack([encoding.weight[p] for p in row]) for row in positions.tolist()]
    )
    assert torch.equal(encoding(x, positions=positions), x + expected)
    assert encoding(x[:0], positions=positions[:0]).shape == (0, 5, 4)


def test_no_position_is_out_of_range_where_there_is_none():
    encoding = LearnedEncoding(3, 4)
    assert encoding(torch.zeros(0, 5, 4), positions=torch.zeros(0, 5).long()).shape == (
        0,
        5,
        4,
    )


def test_a_learned_encoding_made_on_meta_draws_its_rows():
    with torch.device("meta"):
        encoding = LearnedEncoding(1000, 64)
    encoding = encoding.to_empty(device="cpu")
    encoding.weight.data.fill_(torch.nan)
    torch.manual_seed(5)
    encoding.reset_parameters()
    torch.manual_seed(5)
    assert torch.equal(encoding.weight, LearnedEncoding(1000, 64).weight)
    assert 0.019 < encoding.weight.std() < 0.021


def test_a_learned_encoding_on_meta_tells_the_shape():
    with torch.device("meta"):
        encoding = LearnedEncoding(6, 4)
        positions = torch.zeros(2, 3, dtype=torch.long)
        assert encoding(torch.zeros(2, 3, 4), positions=positions).shape == (2, 3, 4)


GIVEN = {
    "shared": torch.tensor([3, 1, 5]),
    "for each": torch.tensor([[0, 5, 2], [4, 4, 1]], dtype=torch.int32),
}


def as_program(encoding, x, positions):
    program = torch.export.export(encoding, (x,), {"positions": positions})
    return lambda x, positions: program.module()(x, positions=positions)


def as_compiled(backend):
    def make(encoding, x, positions):
        torch._dynamo.reset()
        return torch.compile(encoding, fullgraph=True, backend=backend)

    return make


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(
    "make",
    [as_compiled("aot_eager"), as_compiled("inductor"), as_program],
    ids=["aot_eager", "inductor", "export"],
)
def test_a_learned_encoding_in_a_graph(make, kind):
    encoding, x, positions = LearnedEncoding(6, 4), torch.randn(2, 3, 4), GIVEN[kind]
    graph = make(encoding, x, positions)
    assert torch.equal(graph(x, positions=positions), encoding(x, positions=positions))
    # It cannot raise, so what it does not know is NaN: neither row 5 for -1, nor zeros.
    outside = torch.tensor([-1, 5, 6]).to(positions).expand_as(positions).clone()
    unknown = graph(x, positions=outside).isnan()
    assert (
        unknown.all(-1).tolist()
        == unknown.any(-1).tolist()
        == [[True, False, True]] * 2
    )


def test_gradients_of_a_learned_encoding_in_a_graph():
    encoding, x = LearnedEncoding(6, 4), torch.randn(2, 3, 4)
    compiled = as_compiled("aot_eager")(encoding, x, None)
    weights = torch.randn(2, 3, 4)
    exact, got = (
        torch.autograd.grad(
            (call(x, positions=GIVEN["for each"]) * weights).sum(), encoding.weight
        )[0]
        for call in (encoding, compiled)
    )
    close(got, exact)


# -------------------------------------------------------------------------- ALiBi

EIGHT = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (1, [2**-8]),
        (8, EIGHT),
        (12, [*EIGHT, 0.70711, 0.35355, 0.17678, 0.08839]),
    ],
)
def test_alibi_slopes(heads, slopes):
    assert alibi_slopes(heads).tolist() == pytest.approx(slopes, abs=5e-6)


@given(heads=st.integers(1, 40))
def test_there_is_a_different_slope_for_each_head(heads):
    slopes = alibi_slopes(heads)
    assert slopes.dtype == torch.float32 and len(set(slopes.tolist())) == heads
    assert ((slopes > 0) & (slopes < 1)).all()


def test_alibi_bias_is_minus_slope_times_distance():
    bias, slopes = alibi_bias(4, 5), alibi_slopes(4)
    for head, i, j in ((0, 4, 0), (3, 2, 1), (1, 0, 3), (2, 2, 2)):
        assert bias[head, i, j].item() == pytest.approx(
            -slopes[head].item() * abs(i - j)
        )
    assert torch.equal(alibi_bias(4, 1, 5), bias[:, -1:])
    assert alibi_bias(4, 0, 5).shape == (4, 0, 5)


@pytest.mark.parametrize("heads", [1, 4, 6])
def test_alibi_bias_of_positions(heads):
    q, k = torch.randint(-9, 99, (2, 3)), torch.randint(-9, 99, (2, 5))
    bias = alibi_bias(heads, positions=(q, k))
    assert bias.shape == (2, heads, 3, 5) and bias.dtype == torch.float32
    slopes = alibi_slopes(heads).tolist()
    for b, h, i, j in itertools.product(range(2), range(heads), range(3), range(5)):
        expected = -slopes[h] * abs(q[b, i].item() - k[b, j].item())
        assert bias[b, h, i, j].item() == pytest.approx(expected, rel=1e-6)
    for row in range(2):
        apart = alibi_bias(heads, positions=(q[row], k[row]))
        assert torch.equal(apart, bias[row])
    # One row for every sequence, on either side.
    assert torch.equal(alibi_bias(heads, positions=(q[0], k))[0], bias[0])
    assert torch.equal(alibi_bias(heads, positions=(q[:1], k))[0], bias[0])
    assert torch.equal(alibi_bias(heads, positions=[q, k[0]])[0], bias[0])


def test_alibi_bias_of_positions_is_that_of_lengths():
    plain = torch.arange(7)
    assert torch.equal(alibi_bias(4, positions=plain), alibi_bias(4, 7))
    assert torch.equal(alibi_bias(4, positions=plain + 10_000_000), alibi_bias(4, 7))
    assert torch.equal(alibi_bias(4, positions=(plain[5:], plain)), alibi_bias(4, 2, 7))
    unsigned = plain.to(torch.uint8)
    assert torch.equal(alibi_bias(4, positions=unsigned), alibi_bias(4, 7))
    halves = alibi_bias(4, positions=plain / 2)
    assert torch.equal(halves, alibi_bias(4, 7) / 2)


@pytest.mark.parametrize("heads", [8, 12])
@pytest.mark.parametrize("batch", [None, 2])
def test_x_transformers_alibi(heads, batch):
    library = peer("x_transformers.x_transformers")
    theirs = library.AlibiPositionalBias(heads)
    shape = () if batch is None else (batch,)
    q, k = torch.randint(0, 500, (*shape, 5)), torch.randint(0, 500, (*shape, 9))
    close(alibi_bias(heads, positions=(q, k)), theirs.forward_custom_pos(q, k), 1e-4)
    close(alibi_bias(heads, 5, 9), theirs(5, 9), 1e-6)


# ---------------------------------------------------------------------- bad input

X = torch.zeros(1, 3, 8)
ADD, LEARNED = SinusoidalEncoding(8), LearnedEncoding(6, 8)

BAD = {
    "ValueError: dim ... even ... 7": lambda: sinusoidal(torch.arange(3), 7),
    "TypeError: positions ... list": lambda: sinusoidal([0, 1], 8),
    "TypeError: 256": lambda: sinusoidal(torch.arange(3).bfloat16(), 8),
    "ValueError: dim ... even ... got 7": lambda: SinusoidalEncoding(7),
    "ValueError: base ... nan": lambda: SinusoidalEncoding(8, math.nan),
    "TypeError: x must ... floating ... int64": lambda: ADD(X.long()),
    "ValueError: dim=8 ... (1, 3, 6)": lambda: ADD(X[..., :6]),
    "ValueError: (batch, seq, dim) ... (8,)": lambda: ADD(X[0, 0]),
    "TypeError: start ... int ... 1.5": lambda: ADD(X, start=1.5),
    "ValueError: max_len ... positive ... 0": lambda: LearnedEncoding(0, 8),
    "TypeError: max_len ... 6.0": lambda: LearnedEncoding(6.0, 8),
    "ValueError: dim ... -8": lambda: LearnedEncoding(6, -8),
    "ValueError: dim=8 ... got (1, 3, 6)": lambda: LEARNED(X[..., :6]),
    "ValueError: positions ... (batch, seq) = (1, 3), got (4,)": lambda: ADD(
        X, positions=torch.arange(4)
    ),
    "ValueError: positions, or start": lambda: ADD(X, 1, torch.arange(3)),
    "TypeError: positions ... 2048": lambda: ADD(X, positions=torch.ones(3).half()),
    "ValueError: positions 4 to 6 ... max_len=6": lambda: LEARNED(
        X, positions=torch.arange(4, 7)
    ),
    "TypeError: positions must be int64 or int32, got torch.uint8": lambda: LEARNED(
        X, positions=torch.ones(3, dtype=torch.uint8)
    ),
    "TypeError: positions must be int64 or int32, got torch.int8": lambda: LEARNED(
        X, positions=torch.ones(3, dtype=torch.int8)
    ),
    "TypeError: positions must be int64 or int32, got torch.int16": lambda: LEARNED(
        X, positions=torch.ones(3, dtype=torch.int16)
    ),
    "TypeError: positions must be int64 or int32, got torch.float32": lambda: LEARNED(
        X, positions=torch.ones(3, dtype=torch.float32)
    ),
    "TypeError: positions must be int64 or int32, got torch.float64": lambda: LEARNED(
        X, positions=torch.ones(3, dtype=torch.float64)
    ),
    "ValueError: positions -2 to 1 were asked for": lambda: LEARNED(
        X, positions=torch.tensor([0, -2, 1])
    ),
    "TypeError: positions ... torch.bool": lambda: LEARNED(
        X, positions=torch.ones(3).bool()
    ),
    "TypeError: positions ... float8_e4m3fn ... past 16;": lambda: ADD(
        X, positions=torch.ones(3).to(torch.float8_e4m3fn)
    ),
    "TypeError: start ... bool": lambda: LEARNED(X, start=True),
    "ValueError: heads ... positive ... 0": lambda: alibi_slopes(0),
    "TypeError: heads ... int ... 8.0": lambda: alibi_bias(8.0, 3),
    "ValueError: q_len=5 ... k_len=3": lambda: alibi_bias(8, 5, 3),
    "ValueError: alibi_bias needs q_len or positions": lambda: alibi_bias(8),
    "ValueError: give positions, or q_len": lambda: alibi_bias(
        8, 3, positions=torch.arange(3)
    ),
    "TypeError: q_len must be an int ... positions=... ... Tensor": lambda: alibi_bias(
        8, torch.arange(3)
    ),
    "ValueError: positions ... one batch ... (2, 3) and (3, 3)": lambda: alibi_bias(
        8, positions=(torch.ones(2, 3), torch.ones(3, 3))
    ),
    "ValueError: positions must be (seq,) ... got () and ()": lambda: alibi_bias(
        8, positions=torch.tensor(1)
    ),
    "ValueError: pair ... got 1 items": lambda: alibi_bias(8, positions=[X]),
    "TypeError: positions ... pair of tensors, got int": lambda: alibi_bias(
        8, positions=3
    ),
    "TypeError: positions must be integers or floats, got torch.bool": lambda: (
        alibi_bias(8, positions=torch.ones(3).bool())
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, refuses):
    refuses(BAD[message], message)


def test_a_learned_table_in_vmap():
    """Values cannot be looked at there: a position past the table gives NaN."""
    table, x = LearnedEncoding(6, 4), torch.randn(3, 2, 5, 4)
    places = torch.randint(6, (3, 5))
    with torch.no_grad():
        got = torch.vmap(lambda x, at: table(x, positions=at))(x, places)
        each = [table(a, positions=b) for a, b in zip(x, places, strict=True)]
        assert torch.equal(got, torch.stack(each))
        past = torch.vmap(lambda x, at: table(x, positions=at))(x, places + 3)
    assert torch.equal(past.isnan().all(-1), (places + 3 > 5)[:, None].expand(3, 2, 5))


@pytest.mark.parametrize("dynamic", [None, True])
def test_sinusoidal_compiles_with_any_base(dynamic):
    torch.compiler.reset()
    compiled = torch.compile(sinusoidal, fullgraph=True, backend="aot_eager",
                             dynamic=dynamic)  # fmt: skip
    for base in (10_000.0, 500.0, 3.5):
        expected = sinusoidal(torch.arange(5), 4, base)
        torch.testing.assert_close(compiled(torch.arange(5), 4, base), expected)
