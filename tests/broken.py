"""Rotations with a fault, each as somebody has written it, and what is wrong with it.

``BROKEN``: the function, how to call identify, the name of the fault, and words of its
cause where they depend on the function.
"""

import torch

from rope_teach import sinusoidal
from rope_teach.axes import pixel_frequencies
from rope_teach.frequencies import yarn


def inv_freq(d, base=10_000.0):
    return 1.0 / base ** (torch.arange(0, d, 2).float() / d)


def table(positions, d, base=10_000.0):
    return positions.float()[:, None] * inv_freq(d, base)


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def rotate_every_two(x):
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


def half(x, angle):
    """Right: what the faults below depart from."""
    angle = torch.cat([angle, angle], dim=-1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def interleaved(x, angle):
    """Right."""
    angle = angle.repeat_interleave(2, dim=-1)
    return x * angle.cos() + rotate_every_two(x) * angle.sin()


# ------------------------------------------------------------------ axes and tokens


def rotated_across_heads(x):
    """x is (batch, heads, seq, head_dim); the positions are counted on axis 1."""
    angle = table(torch.arange(x.shape[1]), x.shape[-1])[:, None]
    return half(x, angle)


def viewed_where_transposed(x):
    """x is (batch, seq, heads, head_dim), and view makes (batch, heads, seq, ...)."""
    b, s, h, d = x.shape
    return half(x.view(b, h, s, d), table(torch.arange(s), d)).view(b, s, h, d)


def flattened_heads(x):
    """Positions run on from head to head."""
    flat = x.flatten(1, 2)
    return half(flat, table(torch.arange(flat.shape[1]), x.shape[-1])).view(x.shape)


def features_as_tokens(x, positions):
    """x is (seq, head_dim), turned over by reshape."""
    turned = half(x.mT.reshape(x.shape), table(positions, x.shape[-1]))
    return turned.reshape(x.mT.shape).mT


# ------------------------------------------------------------------- pairs and signs


def cat_after_interleaved(x, positions):
    c, s = (f(table(positions, x.shape[-1])) for f in (torch.cos, torch.sin))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * c - b * s, a * s + b * c], dim=-1)


def stack_after_half(x, positions):
    c, s = (f(table(positions, x.shape[-1])) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, dim=-1)
    return torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)


def both_reordered(q, k, positions):
    return cat_after_interleaved(q, positions), cat_after_interleaved(k, positions)


def interleaved_table_half_rotation(x, positions):
    angle = table(positions, x.shape[-1]).repeat_interleave(2, dim=-1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def half_table_interleaved_rotation(x, positions):
    angle = table(positions, x.shape[-1])
    angle = torch.cat([angle, angle], dim=-1)
    return x * angle.cos() + rotate_every_two(x) * angle.sin()


def a_frequency_for_each_feature(x, positions):
    d = x.shape[-1]
    angle = positions[:, None] / 10_000 ** (torch.arange(d) / d)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def cos_and_sin_swapped(x, positions):
    angle = table(positions, x.shape[-1])
    angle = torch.cat([angle, angle], dim=-1)
    return x * angle.sin() + rotate_half(x) * angle.cos()


def minus_forgotten(x, positions):
    angle = table(positions, x.shape[-1])
    angle = torch.cat([angle, angle], dim=-1)
    return x * angle.cos() + x.roll(x.shape[-1] // 2, -1) * angle.sin()


def a_mirror(x, positions):
    c, s = (f(table(positions, x.shape[-1])) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * c + b * s, a * s - b * c], dim=-1)


def only_the_firsts(x, positions):
    c, s = (f(table(positions, x.shape[-1])) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * c - b * s, b], dim=-1)


def no_sin(x, positions):
    angle = table(positions, x.shape[-1])
    return x * torch.cat([angle, angle], dim=-1).cos()


def two_pairings(x, positions):
    """rotate_half over rows that a reshape has paired otherwise."""
    angle = table(positions, x.shape[-1])
    angle = torch.cat([angle, angle], dim=-1)
    mixed = rotate_half(x) + rotate_every_two(x)
    return x * angle.cos() + mixed * angle.sin() / 2**0.5


def an_angle_for_each_feature(x, positions):
    angle = table(positions, x.shape[-1])
    angle = torch.cat([angle, angle.flip(-1)], dim=-1)
    return x * angle.cos() + rotate_half(x) * angle.sin()


def backwards(x, positions):
    return half(x, table(positions, x.shape[-1])).flip(-1)


def ahead_at_zero(x, positions):
    return half(x, table(positions, x.shape[-1]) + 0.3)


def in_place(x, positions):
    c, s = (f(table(positions, x.shape[-1])) for f in (torch.cos, torch.sin))
    a, b = x[..., 0::2], x[..., 1::2]
    x[..., 0::2] = a * c - b * s
    x[..., 1::2] = a * s + b * c  # a is a view: it has been turned already
    return x


# ------------------------------------------------------------------------ frequencies


def degrees(x, positions):
    return half(x, torch.deg2rad(table(positions, x.shape[-1])))


def radians_to_degrees(x, positions):
    return half(x, torch.rad2deg(table(positions, x.shape[-1])))


def positive_power(x, positions):
    d = x.shape[-1]
    return half(x, positions[:, None] * 10_000 ** (torch.arange(0, d, 2).double() / d))


def pixel_frequencies_for_tokens(x, positions):
    return half(x, positions.float()[:, None] * pixel_frequencies(x.shape[-1]).float())


def rotated_twice(x, positions):
    angle = table(positions, x.shape[-1])
    return half(half(x, angle), angle)


def frequencies_in_half(x, positions):
    return half(x, positions.float()[:, None] * inv_freq(x.shape[-1]).half().float())


def frequencies_in_bfloat16(x, positions):
    frequencies = inv_freq(x.shape[-1], 500_000.0).bfloat16()
    return half(x, positions.float()[:, None] * frequencies.float())


def one_hand_backwards(x, positions):
    angle = table(positions, x.shape[-1])
    return half(x, torch.cat([angle[:, :-1], -angle[:, -1:]], dim=-1))


def yarn_factor_twice(x, positions):
    frequencies, factor = yarn(x.shape[-1], 10_000.0, factor=16, trained_length=4096)
    return half(x, positions[:, None] * frequencies) * factor**2


def scaled_for_no_reason(x, positions):
    return half(x, table(positions, x.shape[-1])) * 1.2


# -------------------------------------------------------------------------- positions


def bfloat16_positions(x, positions):
    return half(x, table(positions.bfloat16(), x.shape[-1]))


def float16_positions(x, positions):
    return half(x, table(positions.half(), x.shape[-1]))


def bfloat16_product(x, positions):
    """As a matmul under autocast makes it."""
    frequencies = inv_freq(x.shape[-1]).bfloat16()
    return half(x, (positions.bfloat16()[:, None] * frequencies).float())


def offset_forgotten(x, start):
    return half(x, table(torch.arange(x.shape[-2]), x.shape[-1]))


class CacheWithoutOffset:
    """The key of its cache is the length: the offset of the first call stays."""

    def __init__(self):
        self.kept = {}

    def __call__(self, x, start):
        seq = x.shape[-2]
        if seq not in self.kept:
            self.kept[seq] = table(start + torch.arange(seq), x.shape[-1])
        return half(x, self.kept[seq])


def chunked(x):
    """Each chunk of 512 tokens begins at 0 again."""
    return half(x, table(torch.arange(x.shape[-2]) % 512, x.shape[-1]))


def clamped(x, positions):
    return half(x, table(positions.clamp(max=1023), x.shape[-1]))


def sin_repeats(x):
    """The sin table has 100 rows and begins anew; the cos table is long enough."""
    m = torch.arange(x.shape[-2])
    c, s = (torch.cat([t, t], dim=-1) for t in (
        table(m, x.shape[-1]).cos(), table(m % 100, x.shape[-1]).sin()))  # fmt: skip
    return x * c + rotate_half(x) * s


def sin_one_row_late(x, positions):
    c, s = (torch.cat([t, t], dim=-1) for t in (
        table(positions, x.shape[-1]).cos(),
        table(positions + 1, x.shape[-1]).sin()))  # fmt: skip
    return x * c + rotate_half(x) * s


def square_root(x, positions):
    return half(x, table(positions.abs().sqrt(), x.shape[-1]))


def a_share_of_the_length(x):
    """Positions from 0 to 1000 whatever the length."""
    return half(x, table(torch.linspace(0, 1000, x.shape[-2]), x.shape[-1]))


def dynamic(x, positions):
    """The base grows with the largest position: cached keys do not fit."""
    d, longest = x.shape[-1], max(int(positions.max()) + 1, 2048)
    grown = 10_000 * (4 * longest / 2048 - 3) ** (d / (d - 2))
    return half(x, table(positions, d, grown))


# ------------------------------------------------------------------- queries and keys


def off_by_one(q, k, positions):
    d = q.shape[-1]
    return half(q, table(positions, d)), half(k, table(positions + 1, d))


def opposite_signs(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(k, -angle)


def two_bases(q, k, positions):
    d = q.shape[-1]
    return half(q, table(positions, d)), half(k, table(positions, d, 500_000.0))


def two_pairs(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), interleaved(k, angle)


def xpos(q, k, origin_of, invert=True):
    m, d = torch.arange(q.shape[-2]), q.shape[-1]
    zeta = (torch.arange(0, d, 2) + 0.4 * d) / (1.4 * d)
    scale = zeta ** ((m - origin_of(len(m)))[:, None] / 512)
    scale = torch.cat([scale, scale], dim=-1)
    angle = table(m, d)
    return half(q, angle) * scale, half(k, angle) * (1 / scale if invert else scale)


def moving_origin(q, k):
    return xpos(q, k, lambda length: length // 2)


def keys_scaled_as_queries(q, k):
    return xpos(q, k, lambda length: 0, invert=False)


def one_side_louder(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(k, angle) * 1.2


# ---------------------------------------------------------------------- no rotation


def added(x, positions):
    return x + sinusoidal(positions, x.shape[-1])


def normalised(x, positions):
    return half(x, table(positions, x.shape[-1])) / (1 + x.norm(dim=-1, keepdim=True))


def longer_by_position(x, positions):
    return half(x, table(positions, x.shape[-1])) * (1 + positions[:, None] / 100)


def not_a_number(x, positions):
    return half(x, table(positions, x.shape[-1])) * torch.nan


BROKEN = [
    (rotated_across_heads, {"layout": "bhsd"}, "across_heads", ""),
    (viewed_where_transposed, {}, "across_heads", ""),
    (flattened_heads, {}, "across_heads", ""),
    (features_as_tokens, {}, "tokens_mixed", "changing token 3 changes tokens"),
    (cat_after_interleaved, {}, "cat_after_interleaved", ""),
    (both_reordered, {}, "both_cat", ""),
    (stack_after_half, {}, "stack_after_half", ""),
    (interleaved_table_half_rotation, {}, "table_interleaved", ""),
    (half_table_interleaved_rotation, {}, "table_half", ""),
    (a_frequency_for_each_feature, {}, "over_d", ""),
    (an_angle_for_each_feature, {}, "two_angles", ""),
    (backwards, {}, "reordered", "they come out as 63, 62"),
    (ahead_at_zero, {}, "turned_at_zero", ""),
    (cos_and_sin_swapped, {}, "swapped", ""),
    (minus_forgotten, {}, "minus_missing", ""),
    (a_mirror, {}, "mirror", ""),
    (only_the_firsts, {}, "one_of_two", ""),
    (no_sin, {}, "nothing_turns", ""),
    (two_pairings, {}, "pairs_overlap", ""),
    (in_place, {}, "overwritten", ""),
    (degrees, {}, "degrees", ""),
    (radians_to_degrees, {}, "degrees", ""),
    (positive_power, {}, "positive_power", ""),
    (pixel_frequencies_for_tokens, {}, "for_pixels", ""),
    (rotated_twice, {}, "rotated_twice", ""),
    (frequencies_in_half, {}, "frequencies_cast", "rounded to float16"),
    (frequencies_in_bfloat16, {}, "frequencies_cast", "rounded to bfloat16"),
    (one_hand_backwards, {}, "signs_differ", "hands [31] turn the other way"),
    (yarn_factor_twice, {}, "yarn_twice", "1.2773 is applied twice"),
    (scaled_for_no_reason, {}, "scaled", "1.2 times as long"),
    (bfloat16_positions, {}, "positions_rounded", "in bfloat16"),
    (float16_positions, {}, "positions_rounded", "in float16"),
    (bfloat16_product, {}, "positions_rounded", "in bfloat16"),
    (offset_forgotten, {}, "positions_unused", "start is not used"),
    (CacheWithoutOffset(), {}, "positions_unused", "missing in a cache"),
    (chunked, {}, "restarted", "restart every 512"),
    (clamped, {}, "clamped", "the table has 1024 rows"),
    (sin_repeats, {}, "table_ends", "from position 100 on"),
    (sin_one_row_late, {}, "cos_without_sin", ""),
    (square_root, {}, "uneven", "position"),
    (a_share_of_the_length, {}, "length_sets_speed", ""),
    (dynamic, {}, "length_sets_speed", ""),
    (off_by_one, {}, "off_by_one", "k stands +1 tokens"),
    (opposite_signs, {}, "other_signs", ""),
    (two_bases, {}, "other_speeds", ""),
    (two_pairs, {}, "other_pairs", ""),
    (one_side_louder, {}, "other_lengths", ""),
    (moving_origin, {}, "length_sets_scale", ""),
    (keys_scaled_as_queries, {}, "xpos_not_inverted", ""),
    (added, {}, "added", ""),
    (normalised, {}, "normalised", ""),
    (longer_by_position, {}, "token_scaled", ""),
    (not_a_number, {}, "not_finite", ""),
]
