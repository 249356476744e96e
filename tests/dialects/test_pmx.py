"""OpenPPL's operator: held against its specification, and better where it is wrong.

The original comes with no package. Its specification is a loop over sequences and
tokens; that loop, in float64 and with the matrix form, is the oracle here.
"""

import pytest
import torch

from rope_teach import inverse_frequencies, rotate_matrix
from rope_teach.dialects.pmx import rotary_position_embedding
from rope_teach.tables import angles

BATCH, SEQ, HEADS, KEY_HEADS, DIM = 2, 5, 4, 2, 16


def sample(dtype=torch.float32):
    torch.manual_seed(0)
    query = torch.randn(BATCH, SEQ, HEADS, DIM)
    key = torch.randn(BATCH, SEQ, KEY_HEADS, DIM)
    if dtype == torch.int8:
        query, key = (x.mul(60).round().clamp(-128, 127) for x in (query, key))
    return query.to(dtype), key.to(dtype)


def specification(x, start_pos, pad_len=(0,) * BATCH, rotary_dim=0, theta=10_000.0):
    inv_freq = inverse_frequencies(rotary_dim or DIM, theta)
    out = x.double()
    for b in range(BATCH):
        for s in range(x.shape[1]):
            angle = angles(torch.tensor([start_pos + s - pad_len[b]]), inv_freq)
            out[b, s] = rotate_matrix(out[b, s], angle.expand(x.shape[2], -1))
    return out


CASES = {
    "plain": {"start_pos": 0},
    "decoding": {"start_pos": 1000},
    "padded": {"start_pos": 3, "pad_len": [2, 0]},
    "partial": {"start_pos": 7, "rotary_dim": 8},
    "theta": {"start_pos": 7, "theta": 500_000.0},
    "all": {"start_pos": 9, "pad_len": [0, 4], "rotary_dim": 8, "theta": 100.0},
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("name", CASES)
def test_follows_the_specification(name, dtype, tolerance):
    case, (query, key) = CASES[name], sample(dtype)
    tensors = {**case, "start_pos": torch.tensor(case["start_pos"])}
    if "pad_len" in case:
        tensors["pad_len"] = torch.tensor(case["pad_len"])
    both = rotary_position_embedding(query, key, **tensors)
    for x, rotated in zip((query, key), both, strict=True):
        assert rotated.dtype == dtype and rotated.shape == x.shape
        exact = specification(x, **case)
        assert torch.allclose(rotated.double(), exact, rtol=0, atol=tolerance)


def test_padding_on_the_left_changes_no_real_token():
    query, key = sample()
    padded = torch.cat([torch.zeros_like(query[:, :3]), query], dim=1)
    pad_len = torch.full((BATCH,), 3)
    rotated, _ = rotary_position_embedding(padded, padded, 0, pad_len)
    assert torch.equal(rotated[:, 3:], rotary_position_embedding(query, key, 0)[0])


def test_bypass_key_returns_the_key_itself():
    query, key = sample()
    rotated, same = rotary_position_embedding(query, key, 3, bypass_key=True)
    assert same is key and not torch.equal(rotated, query)


# ------------------------------------------------------- where the original is wrong


def test_int8_is_the_nearest_and_does_not_wrap():
    query, key = sample(torch.int8)
    query[0, 1, 0, :2] = torch.tensor(
        [-117, 117]
    )  # turned by one radian: -161.7, -35.2
    exact = specification(query, start_pos=0)
    ours = rotary_position_embedding(query, key, 0)[0]
    assert ours.dtype == torch.int8 and ours[0, 1, 0, 0] == -128
    assert (ours - exact.clamp(-128, 127)).abs().max() <= 0.5

    theirs = exact.to(torch.int32).to(torch.int8)  # what a cast does: cut off, wrap
    assert theirs[0, 1, 0, 0] == -161 + 256
    cut = (theirs - exact).abs()[exact.abs() < 128]
    assert cut.max() > 0.99 and 0.4 < cut.mean() < 0.6


def test_int8_rounds_ties_to_even():
    theta = (torch.pi / 3) ** -2  # the second pair then turns by 60 degrees a token
    x = torch.zeros(1, 5, 1, 4, dtype=torch.int8)
    x[0, :, 0, 2] = torch.tensor([1, 3, 5, -1, -3])  # cos is 0.5: 0.5, 1.5, 2.5...
    rotated = [
        rotary_position_embedding(token, token, 1, theta=theta)[0][0, 0, 0, 2].item()
        for token in x.split(1, dim=1)
    ]
    assert rotated == [0, 2, 2, 0, -2]


def test_angles_are_exact_at_a_million():
    query, key = sample()
    ours = rotary_position_embedding(query, key, 1_000_000)[0]
    exact = specification(query, start_pos=1_000_000)
    assert torch.allclose(ours.double(), exact, rtol=0, atol=1e-6)

    positions = torch.arange(1_000_000, 1_000_000 + SEQ, dtype=torch.float32)
    freqs = 1 / 10_000 ** (torch.arange(0, DIM, 2).float() / DIM)
    angle = torch.outer(positions, freqs)  # in float32, as the original has it
    theirs = rotate_matrix(query, angle, layout="bshd")
    assert (theirs - exact).abs().max() > 0.01


def test_a_wide_key_beside_a_narrow_query_keeps_its_digits():
    query, key = sample()
    turned = rotary_position_embedding(query.float(), key.double(), 1000)[1]
    assert torch.equal(turned, rotary_position_embedding(key.double(), key, 1000)[0])


def test_a_start_in_a_tensor_is_never_asked_for():
    query, key = sample()
    at = torch.tensor([3, 70])
    mapped = torch.vmap(lambda s: rotary_position_embedding(query, key, s)[0])(at)
    each = [rotary_position_embedding(query, key, int(s))[0] for s in at]
    torch.testing.assert_close(mapped, torch.stack(each))


def test_padding_of_unsigned_integers():
    query, key = sample()
    pad = torch.tensor([2, 0])
    ours = rotary_position_embedding(query, key, 0, pad.to(torch.uint16))
    assert torch.equal(ours[0], rotary_position_embedding(query, key, 0, pad)[0])


Q, K = sample()
BAD = {
    "TypeError: query ... floating-point or int8 ... torch.int64": lambda: (
        rotary_position_embedding(Q.long(), K, 0)
    ),
    "TypeError: key ... got list": lambda: rotary_position_embedding(Q, [1], 0),
    "ValueError: query must be (batch, seq, heads, head_dim), got (5, 4, 16)": lambda: (
        rotary_position_embedding(Q[0], K, 0)
    ),
    "ValueError: heads (axis 2) alone, got (2, 5, 4, 16) and (2, 4, 2, 16)": lambda: (
        rotary_position_embedding(Q, K[:, 1:], 0)
    ),
    "ValueError: start_pos must be one integer ... pad_len": lambda: (
        rotary_position_embedding(Q, K, torch.tensor([0, 1]))
    ),
    "TypeError: start_pos must be an int ... float": lambda: rotary_position_embedding(
        Q, K, 0.5
    ),
    "ValueError: pad_len must have shape (batch,) = (2,), got (1,)": lambda: (
        rotary_position_embedding(Q, K, 0, torch.tensor([0]))
    ),
    "ValueError: rotary_dim must be even and positive ... got 5": lambda: (
        rotary_position_embedding(Q, K, 0, rotary_dim=5)
    ),
    "ValueError: enough for 32 features, but x has head_dim 16": lambda: (
        rotary_position_embedding(Q, K, 0, rotary_dim=32)
    ),
    "ValueError: base must be positive ... got -1": lambda: rotary_position_embedding(
        Q, K, 0, theta=-1
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)
