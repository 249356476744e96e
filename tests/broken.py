"""Rotations with a fault, each as somebody has written it, and what is wrong with it.

``BROKEN``: the function, how to call identify, the name of the fault, and words of its
cause where they depend on the function.
"""

import math

import torch

from rope_teach import sinusoidal
from rope_teach.axes import pixel_frequencies
from rope_teach.frequencies import llama3, yarn


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


# ------------------------- right for equal, contiguous tokens from 0 on, and wrong else


def rolled(x, positions):
    return half(x, table(positions, x.shape[-1])).roll(1, -2)


def first_head_left_out(x, positions):
    y = x.clone()
    y[:, 1:] = half(x[:, 1:], table(positions, x.shape[-1]))
    return y


def first_sequence_alone(x, positions):
    y = x.clone()
    y[:1] = half(x[:1], table(positions, x.shape[-1]))
    return y


def head_added(x, positions):
    angle = table(positions, x.shape[-1])
    heads = torch.arange(x.shape[1])[:, None, None]
    return half(x, angle + heads * inv_freq(x.shape[-1]))


def tiled_over_heads(x):
    heads, seq = x.shape[1:3]
    angle = table(torch.arange(heads), x.shape[-1])
    return half(x, angle.repeat(math.ceil(seq / heads), 1)[:seq])


def one_head_untouched(x, positions):
    return x if x.shape[1] == 1 else half(x, table(positions, x.shape[-1]))


def squeezed_by_length(x, positions):
    """An axis of length 1 is taken for one to add."""
    angle = table(positions, x.shape[-1])
    return half(x, angle if x.shape[1] > 1 else 2 * angle)


def next_head_read(x, positions):
    return half(x, table(positions, x.shape[-1])).roll(1, 1)


def zeros_when_decoding(x, positions):
    y = half(x, table(positions, x.shape[-1]))
    if x.shape[-2] == 1:
        y[1:] = 0
    return y


def read_as_contiguous(x, positions):
    stride = torch.empty(x.shape, device="meta").stride()
    flat = torch.as_strided(x, x.shape, stride, x.storage_offset())
    return half(flat, table(positions, x.shape[-1]))


class GrowingFrequencies:
    """Dynamic NTK that never goes back: past 40 tokens the base stays larger."""

    def __init__(self):
        self.base = 10_000.0

    def __call__(self, x, positions):
        turned = half(x, table(positions, x.shape[-1], self.base))
        if x.shape[-2] > 40:
            self.base = 20_000.0
        return turned


class Grown(GrowingFrequencies):
    """The same, noticed a call later by a single long sequence."""

    def __call__(self, x):
        seq = x.shape[-2]
        turned = half(x, table(torch.arange(seq), x.shape[-1], self.base))
        self.base = 20_000.0 if seq == 8192 else self.base
        return turned


def keys_by_the_heads_of_queries(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(k, angle) * (k.shape[1] / q.shape[1])


def rest_zeroed(x, positions):
    r = x.shape[-1] // 2
    turned = half(x[..., :r], table(positions, r))
    return torch.cat([turned, torch.zeros_like(x[..., r:])], dim=-1)


def rest_from_the_front(x, positions):
    r = x.shape[-1] // 2
    turned = half(x[..., :r], table(positions, r))
    return torch.cat([turned, turned], dim=-1)


def rest_doubled(x, positions):
    r = x.shape[-1] // 2
    return torch.cat([half(x[..., :r], table(positions, r)), 2 * x[..., r:]], dim=-1)


def rest_negated(x, positions):
    r = x.shape[-1] // 2
    return torch.cat([half(x[..., :r], table(positions, r)), -x[..., r:]], dim=-1)


def rest_scaled_by_position(x, positions):
    r = x.shape[-1] // 2
    longer = x[..., r:] * (1 + positions[:, None] / 100)
    return torch.cat([half(x[..., :r], table(positions, r)), longer], dim=-1)


def sine_of_rounded_angles(x, positions):
    angle = table(positions, x.shape[-1])
    cos, sin = angle.cos(), angle.bfloat16().float().sin()
    return x * torch.cat([cos, cos], -1) + rotate_half(x) * torch.cat([sin, sin], -1)


def interpolation_multiplied(x, positions):
    return half(x, table(positions * 4, x.shape[-1]))


def fast_hands_slowed(x, positions):
    frequencies = inv_freq(x.shape[-1], 500_000.0)
    fast = 2 * math.pi / frequencies < 2048
    frequencies = torch.where(fast, frequencies / 8, frequencies)
    return half(x, positions.float()[:, None] * frequencies)


def llama3_cast(x, positions):
    frequencies, _ = llama3(x.shape[-1], 500_000.0, factor=8, trained_length=8192)
    return half(x, positions.float()[:, None] * frequencies.bfloat16().float())


def overwritten_on_a_clone(x, positions):
    angle, x = table(positions, x.shape[-1]), x.clone()
    c, s, (a, b) = angle.cos(), angle.sin(), x.chunk(2, dim=-1)
    b.copy_(a * s + b * c)
    a.copy_(a * c - b * s)
    return x


def rows_angle(positions, d):
    """``(seq, r/2)``, or one row of positions a sequence, with an axis for heads."""
    angle = positions.double()[..., None] * inv_freq(d)
    return (angle if angle.ndim == 2 else angle[:, None]).float()


def first_row_for_all(q, k, cos, sin):
    cos, sin = cos[0][None, None], sin[0][None, None]
    return tuple(x * cos + rotate_half(x) * sin for x in (q, k))


def first_row_of_positions(x, position_ids):
    row = position_ids[0] if position_ids.ndim == 2 else position_ids
    return half(x, table(row, x.shape[-1]))


def counts_on_from_the_first(x, positions):
    m = positions.flatten()[0] + torch.arange(x.shape[-2])
    return half(x, table(m, x.shape[-1]))


def all_by_positions_of_q(q, k, q_positions, k_positions):
    return [half(x, rows_angle(q_positions, x.shape[-1])) for x in (q, k)]


def sorted_positions(x, positions):
    return half(x, table(positions.sort().values, x.shape[-1]))


def rows_slowed(x, position_ids):
    assert position_ids.ndim == 2
    angle = rows_angle(position_ids, x.shape[-1])
    return half(x, angle if len(position_ids) == 1 else angle / 2)


def far_from_each_other(x, positions):
    """Gaps are closed by a random table: no place is where it was."""
    gaps = (positions.diff() != 1).any()
    return half(x, table(positions + 1000.5 * gaps, x.shape[-1]))


def row_before(x, position_ids):
    rows = position_ids if position_ids.ndim == 1 else position_ids.roll(1, 0)
    return half(x, rows_angle(rows, x.shape[-1]))


def sine_of_the_first_row(q, k, cos, sin):
    cos, sin = cos[:, None], sin[:1, None]
    return tuple(x * cos + rotate_half(x) * sin for x in (q, k))


def far_table_ends(x, positions):
    return half(x, rows_angle(positions.clamp(max=50_000), x.shape[-1]))


def far_rows_not_a_number(x, positions):
    angle = rows_angle(positions, x.shape[-1])
    return half(x, angle.where((positions <= 5000)[..., None], torch.nan))


def far_rows_empty(x, positions):
    there = (positions <= 50_000)[..., None]
    return half(x, rows_angle(positions, x.shape[-1])) * there


def slowest_hand_first(x, positions):
    return half(x, table(positions, x.shape[-1]).flip(-1))


def sixteen_bit_integers(x, positions):
    return half(x, rows_angle(positions % 2**15, x.shape[-1]))


def sign_ignored(x, positions):
    return half(x, table(positions.abs(), x.shape[-1]))


def clamped_at_zero(x, positions):
    return half(x, table(positions.clamp(min=0), x.shape[-1]))


def table_from_its_end(x, positions):
    return half(x, table(torch.arange(130_000), x.shape[-1])[positions])


def offset_counted_twice(x, start=0):
    return half(x, table(torch.arange(x.shape[-2]) + 2 * start, x.shape[-1]))


def from_the_last_token(x):
    return half(x, table(torch.arange(x.shape[-2]).flip(0), x.shape[-1]))


def aligned_to_the_end(x):
    """The last token stands at 10,000 whatever the length."""
    m = torch.arange(x.shape[-2]) + 10_000 - x.shape[-2]
    return half(x, table(m, x.shape[-1]))


def counts_when_out_of_order(x, positions):
    if (positions.diff() < 0).any():
        positions = torch.arange(len(positions))
    return half(x, table(positions, x.shape[-1]))


def q_forgotten(q, k):
    return q, half(k, table(torch.arange(k.shape[-2]), k.shape[-1]))


def offset_for_q_alone(q, k, start=0):
    m = torch.arange(q.shape[-2])
    return half(q, table(m + start, q.shape[-1])), half(k, table(m, q.shape[-1]))


def returned_swapped(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(k, angle), half(q, angle)


def q_rotated_twice_over(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(q, angle)


def halves_crossed(q, k, positions):
    angle, n = table(positions, q.shape[-1]), q.shape[-1] // 2
    q, k = half(q, angle), half(k, angle)
    return torch.cat([q[..., :n], k[..., n:]], -1), torch.cat(
        [k[..., :n], q[..., n:]], -1
    )


# --------------------------------------- right for usual sizes, inputs and first calls


def a_base_for_each_head(x, positions):
    turned = [
        half(x[:, h], table(positions, x.shape[-1], 10_000.0 * (h + 1)))
        for h in range(x.shape[1])
    ]
    return torch.stack(turned, 1)


def axes_found_by_length(x):
    """The sequence is taken to be axis 1 wherever axes 1 and 2 are of one length."""
    if x.shape[1] != x.shape[2]:
        return half(x, table(torch.arange(x.shape[2]), x.shape[-1]))
    return half(x, table(torch.arange(x.shape[1]), x.shape[-1])[:, None])


def four_heads_at_most(x, positions):
    y = x.clone()
    y[:, :4] = half(x[:, :4], table(positions, x.shape[-1]))
    return y


def clamped_features(x, positions):
    return half(x.clamp(-20, 20), table(positions, x.shape[-1]))


class OneBuffer:
    """All results of one shape are in one place."""

    def __init__(self):
        self.kept = {}

    def __call__(self, x, positions):
        turned = half(x, table(positions, x.shape[-1]))
        return self.kept.setdefault(x.shape, torch.empty_like(x)).copy_(turned)


class CacheByEnds:
    """The key of its cache is the length, the first and the last position."""

    def __init__(self):
        self.kept = {}

    def __call__(self, x, positions):
        key = len(positions), int(positions[0]), int(positions[-1])
        angle = self.kept.setdefault(key, table(positions, x.shape[-1]))
        return half(x, angle)


def x_left_in(x, positions):
    return x + half(x, table(positions, x.shape[-1]))


def mean_with_x(x, positions):
    return (x + half(x, table(positions, x.shape[-1]))) / 2


def eight_bit_positions(x, positions):
    return half(x, table(positions.to(torch.int8), x.shape[-1]))


def sixteen_bit_positions(x, positions):
    return half(x, rows_angle(positions.to(torch.int16), x.shape[-1]))


def fixed_point_angles(x, positions):
    steps = (positions.int() * 100_000).double() / 100_000
    return half(x, rows_angle(steps, x.shape[-1]))


class ForwardBackward(torch.autograd.Function):
    """A custom backward that turns gradients as the forward turns features."""

    @staticmethod
    def forward(context, x, angle):
        context.save_for_backward(angle)
        return half(x, angle)

    @staticmethod
    def backward(context, gradient):
        return half(gradient, *context.saved_tensors), None


def gradient_turned_forward(x, positions):
    return ForwardBackward.apply(x, table(positions, x.shape[-1]))


def values_too(q, k, v, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(k, angle), half(v, angle)


def first_pair_still(x, positions):
    frequencies = inv_freq(x.shape[-1])
    frequencies[0] = 0
    return half(x, positions[:, None] * frequencies)


def a_pair_between_still(x, positions):
    frequencies = inv_freq(x.shape[-1])
    frequencies[7] = 0
    return interleaved(x, positions[:, None] * frequencies)


def running_sum(x, positions):
    return half(x, table(positions.cumsum(-1), x.shape[-1]))


def keys_longer_by_position(q, k, positions):
    angle = table(positions, q.shape[-1])
    return half(q, angle), half(k, angle) * (1 + positions[:, None] / 1000)


BROKEN = [
    (rotated_across_heads, {"layout": "bhsd"}, "across_heads", ""),
    (viewed_where_transposed, {}, "across_heads", ""),
    (flattened_heads, {}, "across_heads", ""),
    (features_as_tokens, {}, "tokens_mixed", "changing token 3 changes tokens"),
    (cat_after_interleaved, {}, "cat_after_interleaved", ""),
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
    (rolled, {}, "token_moved", "comes out as token 4"),
    (first_head_left_out, {}, "left_out", "heads [0]"),
    (first_sequence_alone, {}, "left_out", "sequences [1]"),
    (head_added, {"layout": "bhsd"}, "heads_shifted", ""),
    (tiled_over_heads, {}, "counted_elsewhere", "over the heads"),
    (one_head_untouched, {}, "one_head", "3 heads turn"),
    (squeezed_by_length, {}, "heads_count", ""),
    (next_head_read, {}, "inputs_mixed", ""),
    (zeros_when_decoding, {}, "one_token", ""),
    (read_as_contiguous, {}, "strides_ignored", "a transposed view"),
    (GrowingFrequencies(), {}, "length_sets_speed", ""),
    (Grown(), {}, "history", ""),
    (keys_by_the_heads_of_queries, {}, "fewer_keys", ""),
    (rest_zeroed, {}, "lost", "features 32, 33"),
    (rest_from_the_front, {}, "lost", "features 32, 33"),
    (rest_doubled, {}, "rest_changed", "by 2"),
    (rest_negated, {}, "rest_changed", "by -1"),
    (rest_scaled_by_position, {}, "rest_changed", "depend on the token"),
    (sine_of_rounded_angles, {}, "part_rounded", "the sine is of angles rounded to b"),
    (interpolation_multiplied, {}, "multiplied", "4 times as fast as base 10000"),
    (fast_hands_slowed, {}, "upside_down", "base 500000 are slowed by 8"),
    (llama3_cast, {}, "frequencies_cast", "rounded to bfloat16"),
    (overwritten_on_a_clone, {}, "overwritten", ""),
    (first_row_for_all, {}, "first_row", "every sequence of q"),
    (first_row_of_positions, {}, "first_row", "every sequence of x"),
    (row_before, {}, "other_row", "positions of another"),
    (sine_of_the_first_row, {}, "rows_not_followed", ""),
    (far_table_ends, {}, "stuck", "124114 and 124115"),
    (far_rows_not_a_number, {}, "not_finite_far", "position 5001"),
    (far_rows_empty, {}, "not_finite_far", "position 124114"),
    (slowest_hand_first, {}, "slowest_first", "base 10000"),
    (sixteen_bit_integers, {}, "restarted", "every 32768 tokens"),
    (sign_ignored, {}, "negative_mirrored", ""),
    (counts_on_from_the_first, {}, "first_position", ""),
    (all_by_positions_of_q, {}, "positions_of_other", "k is not turned by its own"),
    (sorted_positions, {}, "other_places", "is turned as at [0, 1, 3, 3, 5, 9, 21]"),
    (rows_slowed, {}, "rows_not_followed", ""),
    (far_from_each_other, {}, "positions_not_followed", ""),
    (clamped_at_zero, {}, "negative_clamped", ""),
    (table_from_its_end, {}, "negative_wrapped", ""),
    (offset_counted_twice, {}, "offset_twice", "2 start + s"),
    (from_the_last_token, {}, "reversed", ""),
    (aligned_to_the_end, {}, "length_moves_tokens", ""),
    (counts_when_out_of_order, {}, "counted", ""),
    (q_forgotten, {}, "one_forgotten", "q comes out as it went in"),
    (offset_for_q_alone, {}, "positions_unused", "start is not used for k"),
    (returned_swapped, {}, "q_and_k_swapped", ""),
    (q_rotated_twice_over, {}, "one_for_both", "k is computed from q"),
    (halves_crossed, {}, "crossed", ""),
    (a_base_for_each_head, {}, "heads_differ", ""),
    (axes_found_by_length, {}, "other_sizes", "3 sequences, 3 heads and 3 tokens"),
    (four_heads_at_most, {}, "other_sizes", "5 sequences, 12 heads and 10 tokens"),
    (clamped_features, {}, "large_changed", ""),
    (OneBuffer(), {}, "reused", ""),
    (CacheByEnds(), {}, "history", ""),
    (x_left_in, {}, "left_in", "has 1 times x"),
    (mean_with_x, {}, "left_in", "has 0.5 times x"),
    (eight_bit_positions, {}, "overflow", "position 128 and"),
    (sixteen_bit_positions, {}, "overflow", "position 124114"),
    (fixed_point_angles, {}, "overflow", "position 124114"),
    (gradient_turned_forward, {}, "gradient", ""),
    (values_too, {}, "value_turned", ""),
    (first_pair_still, {}, "hand_still", "[(0, 32)]"),
    (a_pair_between_still, {}, "hand_still", "[(14, 15)]"),
    (running_sum, {}, "uneven", ""),
    (keys_longer_by_position, {}, "token_scaled", ""),
]
