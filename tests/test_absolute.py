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
    "ValueError: positions ... (batch, seq) ... (1, 3, 8), got (4,)": lambda: ADD(
        X, positions=torch.arange(4)
    ),
    "ValueError: positions, or start": lambda: ADD(X, 1, torch.arange(3)),
    "TypeError: positions ... 2048": lambda: ADD(X, positions=torch.ones(3).half()),
    "ValueError: positions 4 to 6 ... max_len=6": lambda: LEARNED(
        X, positions=torch.arange(4, 7)
    ),
    "TypeError: start ... bool": lambda: LEARNED(X, start=True),
    "ValueError: heads ... positive ... 0": lambda: alibi_slopes(0),
    "TypeError: heads ... int ... 8.0": lambda: alibi_bias(8.0, 3),
    "ValueError: q_len=5 ... k_len=3": lambda: alibi_bias(8, 5, 3),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, refuses):
    refuses(BAD[message], message)
