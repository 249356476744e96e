"""The mistakes that ``identify`` knows: the law each breaks, its cause, and the mend.

The list is also worth reading before one writes a rotation. The laws are those of
``rope_teach.laws``, and four more that a rotation must obey where it is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rope_teach import laws

__all__ = ["FAULTS", "Broken", "Fault", "meaning"]

LAWS_IN_USE = {
    "frequencies_of_a_rule": "The hands' speeds are powers of a base, fastest first.",
    "same_for_q_and_k": "A query and a key at one position turn alike.",
    "same_for_every_head": "All heads and sequences turn alike at one position.",
    "same_at_any_length": "A token turns alike whatever else is in the call.",
}


class Fault(NamedTuple):
    """What is wrong: the law, the likely cause, and what to change."""

    law: str
    cause: str
    mend: str


class Broken(Exception):
    """A law is broken: ``Broken("off_by_one", tokens=1)``."""

    def __init__(self, name: str, **values: Any) -> None:
        self.name, fault = name, FAULTS[name]
        self.fault = fault._replace(cause=fault.cause.format(**values))
        super().__init__(f"{self.fault.law}: {self.fault.cause}")


def meaning(law: str) -> str:
    """The law in one sentence."""
    return LAWS_IN_USE.get(law) or str(laws.LAWS[law].__doc__).strip()


FAULTS = {
    # ------------------------------------------------------------- axes and tokens
    "across_heads": Fault(
        "same_for_every_head",
        "rotated across heads: positions run over axes {axes} of {layout}",
        "view(b, s, h, d) and transpose(1, 2) before the product; cos and sin along s",
    ),
    "tokens_mixed": Fault(
        "every_token_by_itself",
        "changing token 3 changes tokens {tokens}: two axes are swapped or flattened",
        "transpose swaps axes; view and reshape never do",
    ),
    # -------------------------------------------------------------------- no rotation
    "not_finite": Fault(
        "norm_is_kept",
        "the output has NaN or infinity in it",
        "look for a division by zero or a 16-bit overflow in the tables",
    ),
    "added": Fault(
        "is_linear",
        "something is added to the features, as sinusoidal encodings are",
        "multiply: (a cos - b sin, a sin + b cos)",
    ),
    "normalised": Fault(
        "is_linear",
        "the features are scaled by their own size: a norm inside?",
        "normalise before the rotation, or not at all",
    ),
    "overwritten": Fault(
        "norm_is_kept",
        "a feature is overwritten in place and read again, already turned",
        "write to a new tensor, or clone both features of a pair first",
    ),
    # ------------------------------------------------------------------ pairs and signs
    "pairs_overlap": Fault(
        "norm_is_kept",
        "features are mixed with more than one other: cos and sin use different pairs",
        "rotate_half with a table made by cat, or rotate_every_two with "
        "repeat_interleave",
    ),
    "cat_after_interleaved": Fault(
        "identity_at_zero",
        "features are reordered: interleaved pairs go in, cat puts all firsts in front",
        "stack([first, second], -1).flatten(-2) in place of cat",
    ),
    "both_cat": Fault(
        "identity_at_zero",
        "q and k both come out reordered, interleaved pairs as halves: their scores "
        "are right, and they fit no q or k from elsewhere",
        "nothing where both come from here, as in DeepSeek-V3; else stack([first, "
        "second], -1).flatten(-2)",
    ),
    "stack_after_half": Fault(
        "identity_at_zero",
        "features are reordered: halves go in, stack puts them side by side",
        "cat([first, second], -1) in place of stack and flatten",
    ),
    "reordered": Fault(
        "identity_at_zero",
        "features are reordered: they come out as {order}, ...",
        "put each feature back where it came from",
    ),
    "nothing_turns": Fault(
        "every_pair_turns",
        "features are scaled, and none turns into another: the sine is missing",
        "(a cos - b sin, a sin + b cos)",
    ),
    "minus_missing": Fault(
        "norm_is_kept",
        "a minus is missing: both features of a pair get + sin",
        "rotate_half is cat([-b, a], -1)",
    ),
    "mirror": Fault(
        "norm_is_kept",
        "a minus too many: the block is a mirror, [[c, s], [s, -c]]",
        "(a cos - b sin, a sin + b cos)",
    ),
    "one_of_two": Fault(
        "norm_is_kept",
        "one feature of each pair is turned and the other is not",
        "both: (a cos - b sin, a sin + b cos)",
    ),
    "swapped": Fault(
        "identity_at_zero",
        "cos and sin are swapped: at position 0 every pair is a quarter turn ahead",
        "look at the order of the arguments",
    ),
    "turned_at_zero": Fault(
        "identity_at_zero",
        "at the first token the pairs are turned by angles that no position explains",
        "at position 0 every angle must be 0",
    ),
    # -------------------------------------------------------------------------- tables
    "table_interleaved": Fault(
        "norm_is_kept",
        "the table repeats as interleaved pairs do, and the rotation pairs halves",
        "cat([angle, angle], -1) in place of repeat_interleave(2, -1)",
    ),
    "table_half": Fault(
        "norm_is_kept",
        "the table repeats as halves do, and the rotation is interleaved",
        "repeat_interleave(2, -1) in place of cat([angle, angle], -1)",
    ),
    "over_d": Fault(
        "norm_is_kept",
        "the frequencies run over d instead of d/2: each feature has its own",
        "arange(0, d, 2) / d in the exponent, then repeat the table",
    ),
    "two_angles": Fault(
        "norm_is_kept",
        "the two features of a pair get different angles",
        "one angle a pair, repeated as the pairing wants it",
    ),
    "cos_without_sin": Fault(
        "norm_is_kept",
        "cos and sin do not belong together: other positions, bases or lengths",
        "make both from one table of angles",
    ),
    "table_ends": Fault(
        "norm_is_kept",
        "from position {first} on lengths change: the table of cos or of sin repeats "
        "or ends",
        "make both from one table of angles, long enough for all positions",
    ),
    # ------------------------------------------------------------------------- lengths
    "token_scaled": Fault(
        "norm_is_kept",
        "each token is scaled by its position, and not as xPos does",
        "leave cos and sin as they are",
    ),
    "scaled": Fault(
        "norm_is_kept",
        "every pair is {factor:.5g} times as long as it was, and no rule asks for that",
        "leave cos and sin as they are",
    ),
    "yarn_twice": Fault(
        "norm_is_kept",
        "YaRN's attention factor {factor:.4f} is applied twice",
        "multiply cos and sin by it once, and leave the softmax scale alone",
    ),
    # --------------------------------------------------------------------- frequencies
    "degrees": Fault(
        "frequencies_of_a_rule",
        "angles are converted between degrees and radians, a factor of 57.3",
        "drop the conversion: cos and sin take radians",
    ),
    "rotated_twice": Fault(
        "frequencies_of_a_rule",
        "every hand turns twice as far as it should: the rotation is applied twice",
        "rotate in one place, in the module or in the attention",
    ),
    "positive_power": Fault(
        "frequencies_of_a_rule",
        "the hands get faster from pair to pair: the base has a positive power",
        "base ** (-2i / rotary_dim)",
    ),
    "frequencies_cast": Fault(
        "frequencies_of_a_rule",
        "the inverse frequencies are rounded to {dtype}: .to(dtype) casts buffers too",
        "compute them where they are used, or keep them out of the buffers",
    ),
    "for_pixels": Fault(
        "frequencies_of_a_rule",
        "the hands turn by more than a third of a turn a token, and by no known rule: "
        "are the frequencies for positions from -1 to 1, as of pixels?",
        "base ** (-2i / rotary_dim) for tokens, or such positions",
    ),
    "signs_differ": Fault(
        "frequencies_of_a_rule",
        "hands {hands} turn the other way than hand 0",
        "one sign for all pairs",
    ),
    # ----------------------------------------------------------------------- positions
    "positions_unused": Fault(
        "identity_at_zero",
        "the given {given} is not used: a token at 5 is turned as one at 0. Is the "
        "offset forgotten, or missing in a cache's key?",
        "row s stands at start + s; cache tables by all that made them",
    ),
    "positions_rounded": Fault(
        "only_the_difference_counts",
        "positions or angles are in {dtype}, which cannot tell {whole} from {after}",
        "positions in int64, the product in float64 or float32; cast cos and sin alone",
    ),
    "clamped": Fault(
        "only_the_difference_counts",
        "positions past {last} are turned as {last}: the table has {rows} rows",
        "grow the table, or refuse positions past its end",
    ),
    "restarted": Fault(
        "only_the_difference_counts",
        "positions restart every {rows} tokens: do chunks count from 0?",
        "add the number of tokens before the chunk",
    ),
    "uneven": Fault(
        "turns_add_up",
        "the angle is not proportional to the position, from position {first} on",
        "angle = position * inv_freq, with one inv_freq for all positions",
    ),
    "length_sets_speed": Fault(
        "same_at_any_length",
        "the speeds depend on the length or the largest position of the call (dynamic "
        "NTK, LongRoPE, positions divided by the length): cached keys do not fit",
        "fix the length in the rule before the first token, or rotate keys anew",
    ),
    "length_sets_scale": Fault(
        "same_at_any_length",
        "xPos counts from the middle of the current sequence: cached keys do not fit",
        "one fixed origin, whatever the length",
    ),
    # --------------------------------------------------------------- queries and keys
    "other_pairs": Fault(
        "same_for_q_and_k",
        "q and k are paired differently",
        "rotate both with one function",
    ),
    "other_speeds": Fault(
        "same_for_q_and_k",
        "q and k turn at different speeds",
        "one table for both",
    ),
    "other_signs": Fault(
        "only_the_difference_counts",
        "q and k turn in opposite directions, so that scores depend on m + n",
        "one sign for both: their product takes the difference by itself",
    ),
    "off_by_one": Fault(
        "same_for_q_and_k",
        "k stands {tokens:+g} tokens from q at one position: off by one, or an offset "
        "that one of them lacks",
        "give q and k of one token the same position",
    ),
    "other_lengths": Fault(
        "same_for_q_and_k",
        "q and k are multiplied by different factors",
        "one table for both",
    ),
    "xpos_not_inverted": Fault(
        "only_the_difference_counts",
        "xPos scales keys as it scales queries",
        "multiply q by the scale, and divide k by it",
    ),
}
