"""zeta's RotaryEmbedding: what zeta printed, and where ours is right instead.

zeta's values are kept in a file, which says from which call, and why a file.
"""

import json
from pathlib import Path

import pytest
import torch

from rope_teach import inverse_frequencies, rotate_matrix
from rope_teach.dialects.zeta import (
    XPOS,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    rotate_half,
)
from rope_teach.tables import angles

REFERENCES = Path(__file__).parents[1] / "references"
ZETA = json.loads((REFERENCES / "zetascale.json").read_text())
FAULTS = ZETA["faults"]
T = torch.arange(48).double().sin().float().reshape(6, 8)
CENTRE = 3  # of six positions; zeta's xPos takes the middle of each call for its origin


def close(got, expected, tolerance=2e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- as zeta does


@pytest.mark.parametrize("name", ZETA["cases"])
def test_angles_scale_and_rotation_are_zetas(name):
    case = ZETA["cases"][name]
    rope = RotaryEmbedding(8, **case["arguments"], xpos_origin=CENTRE)
    freqs, scale = rope(6, "cpu")
    close(freqs, case["freqs"])
    if "use_xpos" in case["arguments"]:
        close(scale, case["scale"])
    else:
        assert scale == case["scale"] == 1.0 and isinstance(scale, float)
    close(apply_rotary_pos_emb(T, freqs, scale), case["rotated"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_zeta_loads_and_changes_nothing(dtype):
    saved = {
        "inv_freq": inverse_frequencies(8).to(dtype),
        "scale": torch.tensor([0.2857, 0.4643, 0.6429, 0.8214]).to(dtype),
    }
    model = torch.nn.ModuleDict({"rope": RotaryEmbedding(8, use_xpos=True)})
    model.load_state_dict({f"rope.{name}": x for name, x in saved.items()})
    assert torch.equal(model["rope"].inv_freq, inverse_frequencies(8))
    assert not model.state_dict()
    model.load_state_dict({})


# ----------------------------------------------------------- where zeta is wrong


def test_a_quarter_turn_works_at_every_width():
    assert FAULTS["quarter turn of 8"]["raised"].startswith("ValueError: too many")
    close(rotate_half(rotate_half(T)), -T)
    close((rotate_half(T) * T).sum(-1), torch.zeros(6))

    theirs = torch.tensor(FAULTS["heads 4 wide"]["values"])
    t, freqs = T[:, :4], RotaryEmbedding(4)(6)[0]
    assert (theirs.norm(dim=-1) / t.norm(dim=-1) - 1).abs().max() > 0.1  # no rotation
    close(apply_rotary_pos_emb(t, freqs).norm(dim=-1), t.norm(dim=-1))


def test_xpos_has_one_origin():
    short, long = (FAULTS[f"first scale of {n}"]["values"][0][0] for n in (6, 106))
    assert long > 2 * short  # zeta: the same position, in a longer call

    rope = RotaryEmbedding(8, use_xpos=True, scale_base=64)
    close(rope(106)[1][:6], rope(6)[1], 0)
    # A key cached at length 6 and a query at length 106: their distance alone counts.
    key = apply_rotary_pos_emb(T, rope(6)[0], 1 / rope(6)[1])[:1]
    query = apply_rotary_pos_emb(T[:1], *rope(106))
    later = [table[20:] for table in rope(126)]
    moved_key = apply_rotary_pos_emb(T[:1], later[0][:1], 1 / later[1][:1])
    moved_query = apply_rotary_pos_emb(T[:1], *later)
    close(query @ key.T, moved_query @ moved_key.T)


def test_one_token_gets_the_last_row_of_angles_and_scale():
    assert FAULTS["one token of 6"]["shape"] == [6, 8]
    tables = RotaryEmbedding(8, use_xpos=True)(6)
    last = apply_rotary_pos_emb(T[-1:], *tables)
    assert last.shape == (1, 8)
    close(last, apply_rotary_pos_emb(T, *tables)[-1:], 0)


def test_bfloat16_neither_moves_positions_nor_changes_the_result():
    assert FAULTS["bfloat16 positions"]["shape"][0] == 769  # of 4096
    freqs, _ = RotaryEmbedding(8).bfloat16()(4096)
    assert freqs.dtype == torch.float64 and len(freqs.unique(dim=0)) == 4096

    assert FAULTS["bfloat16 t"]["dtype"] == "torch.float32"
    t = T.bfloat16()
    got = apply_rotary_pos_emb(t, freqs)  # the last six of all
    exact = rotate_matrix(t.double(), freqs[-6:, :4], "half")
    assert got.dtype == torch.bfloat16
    assert ((got - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()  # one rounding


def test_angles_are_exact_at_a_million():
    rope = RotaryEmbedding(8, interpolation_factor=3)
    freqs, _ = rope(1_000_001)
    third = torch.tensor([1_000_000 / 3], dtype=torch.float64)
    expected = angles(third, inverse_frequencies(8))
    close(freqs[-1:, :4].sin(), expected.sin(), 1e-9)
    in_float32 = freqs[-1:, :4].float().sin()  # what float32 angles would make of it
    assert (in_float32 - expected.sin()).abs().max() > 1e-3


def test_dim_2_is_allowed_and_7_is_not(refuses):
    assert FAULTS["dim 2"]["raised"].startswith("ZeroDivisionError")
    assert FAULTS["dim 7"]["shape"] == [6, 8]
    close(RotaryEmbedding(2)(3)[0], [[0, 0], [1, 1], [2, 2]], 0)
    refuses(lambda: RotaryEmbedding(7), "ValueError: dim must be even ... got 7")


# -------------------------------------------------------------------- ways of calling


def test_wider_heads_keep_the_rest():
    t = torch.cat([T, T], dim=-1).expand(2, 3, 6, 16)
    freqs, _ = RotaryEmbedding(8)(6)
    got = apply_rotary_pos_emb(t, freqs)
    close(got[..., 8:], t[..., 8:], 0)
    close(got[1, 2, :, :8], apply_rotary_pos_emb(T, freqs), 0)


FREQS, _ = RotaryEmbedding(8)(6)
BAD = {
    "TypeError: dim must be an int ... float": lambda: RotaryEmbedding(8.0),
    "ValueError: base must be positive ... got 0": lambda: RotaryEmbedding(8, base=0),
    "ValueError: base_rescale_factor must be finite and at least 1, got 0.5": lambda: (
        RotaryEmbedding(8, base_rescale_factor=0.5)
    ),
    "ValueError: the first pair": lambda: RotaryEmbedding(2, base_rescale_factor=2),
    "ValueError: interpolation_factor must be finite and at least 1, got 0": lambda: (
        RotaryEmbedding(8, interpolation_factor=0)
    ),
    "ValueError: scale_base must be positive ... got 0": lambda: RotaryEmbedding(
        8, True, 0
    ),
    "ValueError: seq_len must not be negative, got -1": lambda: RotaryEmbedding(8)(-1),
    "TypeError: seq_len must be an int ... Tensor": lambda: RotaryEmbedding(8)(T),
    "TypeError: t must be a real floating-point": lambda: apply_rotary_pos_emb(
        T.long(), FREQS
    ),
    "ValueError: (5, 4) ... does not fit t of shape (6, 8)": lambda: (
        apply_rotary_pos_emb(T, FREQS[:5])
    ),
    "ValueError: pairing='half' ... other pairing": lambda: apply_rotary_pos_emb(
        T, FREQS[:, :4].repeat_interleave(2, -1)
    ),
    "ValueError: enough for 8 features, but x has head_dim 6": lambda: (
        apply_rotary_pos_emb(T[:, :6], FREQS)
    ),
    "ValueError: scale ... torch.float16 ... xpos_origin": lambda: apply_rotary_pos_emb(
        T.half(), *RotaryEmbedding(8, use_xpos=True)(5000)
    ),
    "ValueError: the width of x must be even ... got 5": lambda: rotate_half(T[:, :5]),
    "RuntimeError: inv_freq of the checkpoint ... 0.00946, not ... 0.001": lambda: (
        RotaryEmbedding(8).load_state_dict({"inv_freq": inverse_frequencies(8, 500)})
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)


# ------------------------------------------------------------------------------ XPOS


@pytest.mark.parametrize("name", ZETA["xpos"]["cases"])
def test_xpos_rotates_and_scales_as_zetas(name):
    case = ZETA["xpos"]["cases"][name]
    offset = case["call"].get("offset", 0)
    x = T[None, :1] if offset else T[None]
    middle = -(-(x.shape[1] + offset) // 2)  # of each call: zeta's origin
    xpos = XPOS(8, **case["arguments"], xpos_origin=middle)
    close(xpos(x, **case["call"])[0], case["rotated"])


def test_xpos_scores_depend_on_the_distance_alone_and_decoding_fits():
    torch.manual_seed(0)
    xpos, (q, k) = XPOS(8, scale_base=64), torch.randn(2, 1, 6, 8)
    full = xpos(q) @ xpos(k, downscale=True).mT
    moved = xpos(q, offset=40) @ xpos(k, offset=40, downscale=True).mT
    torch.testing.assert_close(moved, full)
    steps = [xpos(q[:, i : i + 1], offset=i) for i in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), xpos(q))


def test_xpos_keeps_the_dtype_and_refuses_what_does_not_fit(refuses):
    xpos = XPOS(8)
    assert xpos(T[None].bfloat16()).dtype == torch.bfloat16
    saved = {"scale": torch.tensor([0.2857, 0.4643, 0.6429, 0.8214])}
    xpos.load_state_dict(saved)
    assert not xpos.state_dict()
    refuses(
        lambda: xpos(T), "ValueError: x must be (batch, seq, head_dim=8), got (6, 8)"
    )
    refuses(lambda: XPOS(7), "ValueError: head_dim must be even")
    refuses(lambda: xpos(T[None], offset=0.5), "TypeError: offset must be an int")
    with pytest.raises(RuntimeError, match="scale of the checkpoint is not"):
        XPOS(8).load_state_dict({"scale": torch.ones(4)})
