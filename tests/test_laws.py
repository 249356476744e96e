"""The laws, tested by rotations that are right in other words, and by planted bugs."""

import math
from functools import partial

import pytest
import torch

from rope_teach import RotaryEmbedding, laws, sinusoidal
from rope_teach.frequencies import llama3, longrope, yarn
from rope_teach.identify import identify

# ------------------------------------- correct rotations, as others have written them


def ours(pairing, layout="bhsd"):
    def rotation(x, m):
        rope = RotaryEmbedding(x.shape[-1], pairing=pairing, layout=layout)
        axis = 0 if layout == "bhsd" else 1
        return rope.rotate(x.unsqueeze(axis), m).squeeze(axis)

    return rotation


def frequencies(d, base=10_000.0):
    return 1.0 / base ** (torch.arange(0, d, 2).float() / d)


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def rotate_every_two(x):
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


def textbook_half(x, m, base=10_000.0):
    """Halves in float32, as in model code: full-width tables and rotate_half."""
    angle = m.float()[:, None] * frequencies(x.shape[-1], base)
    angle = torch.cat([angle, angle], dim=-1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def textbook_interleaved(x, m):
    angle = (m.float()[:, None] * frequencies(x.shape[-1])).repeat_interleave(2, dim=-1)
    return x * angle.cos() + rotate_every_two(x) * angle.sin()


def textbook_complex(x, m):
    """As in model code: complex64 phases from polar."""
    angle = m.float()[:, None] * frequencies(x.shape[-1])
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.float().reshape(len(x), -1, 2))
    return torch.view_as_real(pairs * turn).flatten(1).type_as(x)


def loops(x, m):
    out, d = torch.empty_like(x), x.shape[-1]
    for t, position in enumerate(m.tolist()):
        for i in range(0, d, 2):
            c, s = (f(position * 10_000 ** (-i / d)) for f in (math.cos, math.sin))
            a, b = x[t, i], x[t, i + 1]
            out[t, i], out[t, i + 1] = a * c - b * s, a * s + b * c
    return out


def clockwise(x, m):
    return textbook_half(x, -m)


def interpolated(x, m):
    return textbook_half(x, m / 4)


def slow(x, m):
    return textbook_half(x, m, base=500_000.0)


RIGHT = {
    "ours, interleaved": ours("interleaved"),
    "ours, half": ours("half"),
    "ours, bshd": ours("interleaved", "bshd"),
    **{
        f.__name__: f
        for f in (
            textbook_half,
            textbook_interleaved,
            textbook_complex,
            loops,
            clockwise,
            interpolated,
            slow,
        )
    },
}


@pytest.mark.parametrize("head_dim", [2, 8, 64, 128])
@pytest.mark.parametrize("name", RIGHT)
def test_no_law_fails_on_a_right_rotation(name, head_dim):
    laws.check_all(RIGHT[name], head_dim)


# ---------------------------------------------------------------------- planted bugs


def cat_after_the_rotation(x, m):
    """Interleaved pairs are taken, halves are given back."""
    angle = m[:, None] * frequencies(x.shape[-1])
    c, s, a, b = angle.cos(), angle.sin(), x[:, 0::2], x[:, 1::2]
    return torch.cat([a * c - b * s, a * s + b * c], dim=-1)


def tables_of_the_other_pairing(x, m):
    angle = (m[:, None] * frequencies(x.shape[-1])).repeat_interleave(2, dim=-1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def a_minus_forgotten(x, m):
    angle = (m[:, None] * frequencies(x.shape[-1])).repeat(1, 2)
    return x * angle.cos() + x.roll(x.shape[-1] // 2, -1) * angle.sin()


def half_of_the_head(x, m):
    r = x.shape[-1] // 2
    return torch.cat([textbook_half(x[:, :r], m), x[:, r:]], dim=-1)


def additive(x, m):
    return x + sinusoidal(m, x.shape[-1])


def normalised(x, m):
    return textbook_half(x, m) / x.norm(dim=-1, keepdim=True)


def swapped_axes(x, m):
    """The view should have been a transpose: tokens are torn apart."""
    return textbook_half(x.T.reshape(x.shape), m).reshape(x.T.shape).T


def from_position_one(x, m):
    return textbook_half(x, m + 1)


def positions_not_used(x, m):
    return textbook_half(x, torch.arange(len(m)))


def bfloat16_positions(x, m):
    return textbook_half(x, m.bfloat16())


def clamped(x, m):
    """A table of 512 rows; the last one serves all later positions."""
    return textbook_half(x, m.clamp(max=511))


def table_from_its_end(x, m):
    return textbook_half(x, m % 2048)


def square_root(x, m):
    return textbook_half(x, m.sign() * m.abs().sqrt())


def in_place(x, m):
    angle = m[:, None] * frequencies(x.shape[-1])
    c, s, a, b = angle.cos(), angle.sin(), x[:, 0::2], x[:, 1::2]
    x[:, 0::2] = a * c - b * s
    x[:, 1::2] = a * s + b * c  # a is a view: it has been turned already
    return x


def one_feature_per_pair(x, m):
    return x[:, ::2]


def nothing(x, m):
    return None


def not_a_number(x, m):
    return textbook_half(x, m) * torch.nan


# The planted bug, the first law that it breaks, and words of the diagnosis.
WRONG = [
    (cat_after_the_rotation, "identity_at_zero", "reordered (cat"),
    (tables_of_the_other_pairing, "norm_is_kept", "repeated for one pairing"),
    (a_minus_forgotten, "norm_is_kept", "signs"),
    (half_of_the_head, "every_pair_turns", "features [4, 5, 6, 7] do not turn"),
    (additive, "is_linear", "something is added"),
    (normalised, "is_linear", "scaled by their own size"),
    (swapped_axes, "every_token_by_itself", "axes are swapped"),
    (from_position_one, "identity_at_zero", "positions start at 1"),
    (positions_not_used, "identity_at_zero", "positions are not used"),
    (bfloat16_positions, "only_the_difference_counts", "bfloat16"),
    (clamped, "only_the_difference_counts", "clamped"),
    (table_from_its_end, "opposite_turn_undoes", "from its end"),
    (square_root, "turns_add_up", "not proportional to the position"),
    (in_place, None, "overwritten in place"),
    (one_feature_per_pair, None, "keep the shape"),
    (nothing, None, "must return a tensor, it returned NoneType"),
    (not_a_number, "is_linear", "off by nan"),
]


@pytest.mark.parametrize("bug, law, words", WRONG)
def test_a_planted_bug_is_found_and_named(bug, law, words):
    with pytest.raises(laws.LawBroken) as caught:
        laws.check_all(bug)
    assert words in str(caught.value)
    assert "ikely cause" in str(caught.value) or law is None
    if law:  # ... and that law finds it alone
        with pytest.raises(laws.LawBroken, match="Likely cause"):
            laws.LAWS[law](bug)
        earlier = list(laws.LAWS)[: list(laws.LAWS).index(law)]
        for name in earlier:
            laws.LAWS[name](bug)


def test_each_law_has_a_bug_that_it_finds_first():
    assert {law for _, law, _ in WRONG if law} == set(laws.LAWS)


def test_every_law_is_public_and_in_the_list():
    others = {"LawBroken", "LAWS", "check_all", "legal_factor", "without_scaling"}
    functions = set(laws.__all__) - others
    assert functions == set(laws.LAWS)


# ------------------------------------------------------------------- legal scaling


def scaled(factor):
    return lambda x, m: textbook_half(x, m) * factor


@pytest.mark.parametrize(
    "rule",
    [
        partial(yarn, factor=16, trained_length=64),
        partial(
            longrope,
            short_factors=[1.0] * 8,
            long_factors=[2.0] * 8,
            trained_length=64,
            length=512,
        ),
        partial(llama3, factor=8, trained_length=64),
    ],
)
def test_the_rules_for_longer_context_keep_the_laws(rule):
    rope = RotaryEmbedding(16, scaling=rule)
    rotation = lambda x, m: rope.rotate(x[None, None], m)[0, 0]  # noqa: E731
    laws.check_all(rotation, 16)
    assert identify(rope).correct


@pytest.mark.parametrize("role", ["query", "key"])
def test_xpos_keeps_the_laws(role):
    rope = RotaryEmbedding(16, xpos_scale_base=512.0)
    laws.check_all(lambda x, m: rope.rotate(x[None, None], m, role=role)[0, 0], 16)
    assert identify(rope).correct


@pytest.mark.parametrize("factor", [0.5, 1.2, 8.0, 1.2773**2])
def test_a_factor_of_no_rule_is_not_legal(factor):
    with pytest.raises(laws.LawBroken, match="at position 0"):
        laws.check_all(scaled(factor), 16)
    assert not identify(lambda x, positions: scaled(factor)(x, positions)).correct


def test_lengths_that_grow_otherwise_than_xpos_has_them_are_not_legal():
    with pytest.raises(laws.LawBroken, match="norm"):
        laws.norm_is_kept(lambda x, m: textbook_half(x, m) * 1.01 ** m[:, None])


def test_features_that_vanish_do_not_grow_as_xpos_has_them():
    with pytest.raises(laws.LawBroken, match=r"norm .* off by \d"):
        laws.norm_is_kept(lambda x, m: textbook_half(x, m) * (m < 5)[:, None])


def test_how_many_features_turn_can_be_said():
    laws.check_all(half_of_the_head, 8, turning=4)
    with pytest.raises(laws.LawBroken, match="6 of 8 should turn"):
        laws.check_all(half_of_the_head, 8, turning=6)
