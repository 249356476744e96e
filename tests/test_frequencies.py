import math

import mpmath  # comes with torch, through sympy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_teach import inverse_frequencies, wavelengths


def test_values_of_a_head_of_eight():
    expected = torch.tensor([1, 0.1, 0.01, 0.001], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequencies(8), expected, rtol=1e-15, atol=0)


@given(pairs=st.integers(1, 128), base=st.floats(1.0, 1e9))
def test_equals_exact_arithmetic(pairs, base):
    got = inverse_frequencies(2 * pairs, base)
    exact = [float(mpmath.mpf(base) ** (-mpmath.mpf(i) / pairs)) for i in range(pairs)]
    assert got.shape == (pairs,) and got.dtype == torch.float64
    assert got.tolist() == pytest.approx(exact, rel=1e-14, abs=0)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_has_no_say(default):
    expected = inverse_frequencies(64)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(inverse_frequencies(64), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "head_dim, base, longest",
    [
        (64, 1e4, 47_117),
        (64, 5e5, 2_084_765),
        (128, 1e4, 54_410),
        (128, 5e5, 2_559_196),
        (128, 1e6, 5_063_256),
    ],
)
def test_longest_wavelength(head_dim, base, longest):
    tokens = wavelengths(inverse_frequencies(head_dim, base))
    assert tokens[0].item() == pytest.approx(2 * math.pi)
    assert round(tokens[-1].item()) == longest
    assert (tokens.diff() > 0).all()


def test_a_hand_that_never_turns_has_an_infinite_wavelength():
    assert wavelengths(torch.zeros(1)).item() == math.inf


BAD = {
    "ValueError: rotary_dim ... even ... 7": lambda: inverse_frequencies(7),
    "ValueError: rotary_dim ... positive ... 0": lambda: inverse_frequencies(0),
    "ValueError: positive ... -2": lambda: inverse_frequencies(-2),
    "TypeError: rotary_dim ... int ... 8.0": lambda: inverse_frequencies(8.0),
    "TypeError: rotary_dim ... int ... bool": lambda: inverse_frequencies(True),
    "ValueError: base ... nan": lambda: inverse_frequencies(8, math.nan),
    "ValueError: base": lambda: inverse_frequencies(8, math.inf),
    "ValueError: base ... positive": lambda: inverse_frequencies(8, 0),
    "ValueError: -10000": lambda: inverse_frequencies(8, -1e4),
    "TypeError: base ... str": lambda: inverse_frequencies(8, "1e4"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, refuses):
    refuses(BAD[message], message)
