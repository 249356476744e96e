"""The mistakes that ``identify`` knows: the law each breaks, its cause, and the fix.

The list is also worth reading before one writes a rotation. The laws are those of
``rope_teach.laws``, and four more that a rotation must obey where it is used.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rope_teach import laws

__all__ = ["DOUBTFUL", "FAULTS", "Broken", "Fault", "meaning"]

LAWS_IN_USE = {
    "frequencies_of_a_rule": "The hands' speeds are powers of a base, fastest first.",
    "same_for_q_and_k": "A query and a key at one position turn alike.",
    "same_for_every_head": "All heads and sequences turn alike at one position.",
    "values_stay": "Only queries and keys turn: a value is the same everywhere.",
    "same_at_any_length": "A token turns alike whatever else is in the call.",
}

# Under each law, the faults that break it: "name: cause", and after > the fix. Those
# with a ? are doubtful: a wrong guess of the call, of the layout or of a table's form
# looks like them.
LIST = """
# same_for_every_head
across_heads?: rotated across heads: positions run over axes {axes} of {layout}
  > view(b, s, h, d) and transpose(1, 2) before the product; cos and sin along s
left_out: {kind} {which} come out as they went in, and the others turn
  > loop over, or broadcast to, all of them: k may have fewer heads than q
heads_differ?: heads or sequences turn at speeds of their own
  > one angle a token and pair, for all heads and sequences
heads_shifted: each head starts one position later than the one before: the head's
    number is added to the position
  > one position a token, the same in all its heads
counted_elsewhere: positions are counted over the {kind}, and repeated along the
    sequence
  > the length is that of the sequence's axis: x.shape[-2] of bhsd
one_head: one head of one sequence alone is left as it is; {n} heads turn
  > take no shortcut for an axis of length 1
heads_count: one head of one sequence alone turns otherwise than {n} heads do
  > find axes by their place, never by their length
other_sizes: {batch} sequences, {n} heads and {seq} tokens come out wrong, and 2, 3 and
    7 right
  > find axes by their place, never by their length, and turn all of them
inputs_mixed: it is right while all heads, sequences, q and k are equal, and wrong where
    they differ
  > look at what is read from another head, sequence or tensor
strides_ignored: {memory} is read as if it were contiguous
  > use the strides of the input, or .contiguous() first
rows_not_followed: positions of their own for each sequence come out wrong
  > one row of positions a sequence: (batch, seq)
first_row: every sequence of {which} is turned by the first one's positions
  > index cos and sin by sequence as well: (batch, seq, r)
other_row: every sequence of {which} is turned by the positions of another
  > one row of positions a sequence, in the order of the sequences
# every_token_by_itself
tokens_mixed?: changing token 3 changes tokens [{tokens}]: two axes are swapped or
    flattened
  > transpose swaps axes; view and reshape never do
token_moved: token 3 comes out as token {tokens}: the output is shifted along the
    sequence
  > leave the order of tokens alone; shift positions instead
# same_at_any_length
one_token: a single token comes out wrong where there are several sequences, as when
    decoding
  > try (batch, heads, 1, head_dim): a kernel's grid may have no rows left over
reused: what one call returned is overwritten by the next: they share one buffer
  > return a new tensor
history: what comes out depends on earlier calls, which have changed what is kept
  > cache tables by all that made them, and never change the frequencies in place
positions_not_followed: positions in any other order than 0, 1, 2, ... come out wrong
  > look up each token's own position
first_position: {which} uses the first position alone and counts on from there
  > look up each token's own position: padded and packed tokens do not count on
length_moves_tokens: where the first token stands depends on the length of the call
  > row s stands at start + s, whatever the length
length_sets_speed: the speeds depend on the length or the largest position of the call
    (dynamic NTK, LongRoPE, positions divided by the length): cached keys do not fit
  > set the length in the rule before the first token, or rotate keys anew
length_sets_scale: xPos counts from the middle of the current sequence: cached keys do
    not fit
  > one fixed origin, whatever the length
# same_for_q_and_k
fewer_keys: k with fewer heads than q comes out wrong
  > take the number of heads from each tensor
one_forgotten: {which} comes out as it went in; only {other} turns
  > rotate both
q_and_k_swapped: the rotated k is returned as q, and the rotated q as k
  > return (q, k), in this order
one_for_both: {which} is computed from {other}: {other} is rotated and returned twice
  > look for a q that should be a k
crossed: parts of q and of k are joined crosswise
  > join q's two halves, and k's two halves
other_pairs?: q and k are paired differently
  > rotate both with one function
other_speeds: q and k turn at different speeds
  > one table for both
off_by_one: k stands {tokens:+g} tokens from q at one position: off by one, or an offset
    that one of them lacks
  > give q and k of one token the same position
other_lengths: q and k are multiplied by different factors
  > one table for both
# norm_is_kept
not_finite?: the output has NaN or infinity in it
  > look for a division by zero or a 16-bit overflow in the tables
not_finite_far: at position {at} the output is NaN, infinite or zero, and up to {last}
    it is not
  > look for a 16-bit overflow, and for rows of a table that nobody has filled
overwritten: a feature is overwritten in place and read again, already turned
  > write to a new tensor, or clone both features of a pair first
pairs_overlap?: features are mixed with more than one other: cos and sin use different
    pairs
  > rotate_half with a table made by cat, or rotate_every_two with repeat_interleave
lost?: features {features} are lost: nothing of them comes out
  > put the features that do not turn back where they were
rest_changed?: the features that do not turn are multiplied by {factors}
  > leave them as they are
minus_missing?: a minus is missing: both features of a pair get + sin
  > rotate_half is cat([-b, a], -1)
mirror?: a minus too many: the block is a mirror, [[c, s], [s, -c]]
  > (a cos - b sin, a sin + b cos)
one_of_two?: one feature of each pair is turned and the other is not
  > both: (a cos - b sin, a sin + b cos)
table_interleaved?: the table repeats as interleaved pairs do, and the rotation pairs
    halves
  > cat([angle, angle], -1) in place of repeat_interleave(2, -1)
table_half?: the table repeats as halves do, and the rotation is interleaved
  > repeat_interleave(2, -1) in place of cat([angle, angle], -1)
over_d?: the frequencies run over d instead of d/2: each feature has its own
  > arange(0, d, 2) / d in the exponent, then repeat the table
two_angles?: the two features of a pair get different angles
  > one angle a pair, repeated as the pairing wants it
cos_without_sin?: cos and sin do not belong together: other positions, bases or lengths
  > make both from one table of angles
table_ends: from position {first} on lengths change: the table of cos or of sin repeats
    or ends
  > make both from one table of angles, long enough for all positions
left_in: what comes out has {share:.3g} times x itself in it, added to the turned x
  > return the turned x alone
token_scaled: each token is scaled by its position, and not as xPos does
  > leave cos and sin as they are
scaled: every pair is {factor:.5g} times as long as it was, and no rule asks for that
  > leave cos and sin as they are
yarn_twice: YaRN's attention factor {factor:.4f} is applied twice
  > multiply cos and sin by it once, and leave the softmax scale alone
# values_stay
value_turned: v comes out changed, with q and k
  > rotate q and k alone
# is_linear
large_changed: features of the size of 1000 come out wrong, and small ones right: a
    clamp?
  > leave out what depends on the size of the features
added?: something is added to the features, as sinusoidal encodings are
  > multiply: (a cos - b sin, a sin + b cos)
normalised?: the features are scaled by their own size: a norm inside?
  > normalise before the rotation, or not at all
# identity_at_zero
cat_after_interleaved?: features are reordered: interleaved pairs go in, cat puts all
    firsts in front
  > stack([first, second], -1).flatten(-2) in place of cat
stack_after_half?: features are reordered: halves go in, stack puts them side by side
  > cat([first, second], -1) in place of stack and flatten
reordered?: features are reordered: from place {first} on they come out as {order}, ...
  > put each feature back where it came from
swapped?: cos and sin are swapped: at position 0 every pair is a quarter turn ahead
  > look at the order of the arguments
turned_at_zero?: at the first token the pairs are turned by angles that no position
    explains
  > at position 0 every angle must be 0
positions_unused: the given {given} is not used{missed}: a token at 5 is turned as one
    at 0. Is the offset forgotten, or missing in a cache's key?
  > row s stands at start + s; cache tables by all that made them
positions_of_other: {which} is not turned by its own positions where those of {other}
    differ
  > look up q by the positions of q, and k by those of k
counted: {which} is turned by 0, 1, 2, ... whatever its positions are
  > use the positions that are given
# every_pair_turns
nothing_turns?: features are scaled, and none turns into another: the sine is missing
  > (a cos - b sin, a sin + b cos)
hand_still: pairs {pairs} stand still between others that turn
  > one frequency a pair, none of them 0
# only_the_difference_counts
part_rounded: the {part} is of angles rounded to {dtype}, and its partner is not
  > angles in float32 or float64; cast cos and sin alone
stuck: positions {at} and {next} are turned alike: clamped to the end of a table, or
    rounded
  > grow the table, or refuse positions past its end; positions in int64
reversed: positions run from the last token to the first, so that tokens move when the
    sequence grows
  > count from the first token on
positions_rounded: positions or angles are in {dtype}, which cannot tell {whole} from
    {after}
  > positions in int64, the product in float64 or float32; cast cos and sin alone
clamped: positions past {last} are turned as {last}: the table has {rows} rows
  > grow the table, or refuse positions past its end
overflow: position {which} and those after it are turned as others, negative ones
    perhaps: an integer that is too narrow?
  > positions in int64, and their product with the frequencies in float
restarted: positions restart every {rows} tokens: do chunks count from 0?
  > add the number of tokens before the chunk
other_signs: q and k turn in opposite directions, so that scores depend on m + n
  > one sign for both: their product takes the difference by itself
xpos_not_inverted: xPos scales keys as it scales queries
  > multiply q by the scale, and divide k by it
# frequencies_of_a_rule
degrees: angles are converted between degrees and radians, a factor of 57.3
  > drop the conversion: cos and sin take radians
rotated_twice: every hand turns twice as far as it should: the rotation is applied twice
  > rotate in one place, in the module or in the attention
multiplied: every hand turns {factor:g} times as fast as base {base:g} says:
    interpolation divides positions by its factor, and this multiplies
  > positions / factor, or inv_freq / factor
upside_down: the fast hands of base {base:g} are slowed by {factor:.4g} and the slow
    ones are kept: a comparison of wavelengths is the wrong way round
  > divide the frequencies of wavelengths longer than the trained length
positive_power: the hands get faster from pair to pair: the base has a positive power
  > base ** (-2i / rotary_dim)
slowest_first: the hands of base {base:g} come in reversed order, the slowest first
  > put the frequencies in falling order; weights that were trained so need their pairs
    reversed as well
frequencies_cast: the inverse frequencies are rounded to {dtype}: .to(dtype) casts
    buffers too
  > compute them where they are used, or keep them out of the buffers
for_pixels: the hands turn by more than a third of a turn a token, and by no known rule:
    are the frequencies for positions from -1 to 1, as of pixels?
  > base ** (-2i / rotary_dim) for tokens, or such positions
signs_differ: hands {hands} turn the other way than the others
  > one sign for all pairs
# opposite_turn_undoes
gradient: the gradient is not turned back: a backward with the angles of the forward?
  > rotate by -angle in backward
negative_mirrored: negative positions of {which} are turned as positive ones
  > turn them the other way, or refuse them
negative_clamped: negative positions of {which} are turned as 0
  > turn them the other way, or refuse them
negative_wrapped: negative positions are not turned the other way: do they index a table
    from its end?
  > turn them the other way, or refuse them
# turns_add_up
offset_twice: the offset is counted twice for {which}: token s stands at 2 start + s
  > row s stands at start + s: add the start in one place
other_places: {which} with positions {given} is turned as at {at}
  > look up each token's own position
uneven?: the angle is not proportional to the position, from position {first} on
  > angle = position * inv_freq, with one inv_freq for all positions
"""


class Fault(NamedTuple):
    """What is wrong: the law, the likely cause, and what to change."""

    law: str
    cause: str
    fix: str


def _read(text: str) -> dict[str, Fault]:
    faults = {}
    for part in text.split("\n# ")[1:]:
        law, _, listed = part.partition("\n")
        for fault in re.split(r"\n(?=\w)", listed.strip()):
            said, fix = " ".join(fault.split()).split(" > ")
            name, cause = said.split(": ", 1)
            faults[name.rstrip("?")] = Fault(law, cause, fix)
    return faults


FAULTS = _read(LIST)
DOUBTFUL = set(re.findall(r"^(\w+)\?:", LIST, re.M))


class Broken(Exception):
    """A law is broken: ``Broken("off_by_one", tokens=1)``."""

    def __init__(self, name: str, **values: Any) -> None:
        self.name, fault = name, FAULTS[name]
        cause = fault.cause.format(**values).replace("torch.", "")  # of a dtype
        self.fault = fault._replace(cause=cause)
        super().__init__(f"{self.fault.law}: {self.fault.cause}")


def meaning(law: str) -> str:
    """The law in one sentence."""
    return LAWS_IN_USE.get(law) or str(laws.LAWS[law].__doc__).strip()
