"""rotary-embedding-torch itself is the oracle, but where it is wrong."""

import pytest
import torch

from rope_teach import cos_sin, inverse_frequencies, rotate
from rope_teach.dialects.rotary_embedding_torch import (
    RotaryEmbedding,
    apply_learned_rotations,
    apply_rotary_emb,
    broadcat,
)
from tests.test_peers import peer

SEQ, DIM, HEAD = 40, 16, 24


def sample(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(*(shape or (2, 3, SEQ, HEAD))).to(dtype)


def both(*args, **more):
    library = peer("rotary_embedding_torch")
    return library.RotaryEmbedding(*args, **more), RotaryEmbedding(*args, **more)


def close(got, expected, tolerance=2e-5):
    """2e-5: what the original's float32 angles up to 40 leave, and two roundings."""
    torch.testing.assert_close(got, expected.to(got), rtol=0, atol=tolerance)


def far(got, expected, distance):
    assert (got.double() - expected.double()).abs().max() > distance


def exact(t, offset=0):
    """``t`` rotated in float64 by the core; the rest of each head passes."""
    positions = torch.arange(offset, offset + t.shape[-2])
    tables = cos_sin(positions, inverse_frequencies(DIM), torch.float64)
    return rotate(t.double(), *tables)


# ----------------------------------------------------------------- as the original

KINDS = {
    "lang": {},
    "theta": {"theta": 500_000},
    "rescaled": {"theta_rescale_factor": 4.0},
    "interpolated": {"interpolate_factor": 4.0},
    "pixel": {"freqs_for": "pixel", "max_freq": 8},
    "constant": {"freqs_for": "constant", "num_freqs": DIM // 2},
    "custom": {"custom_freqs": torch.linspace(0, 1, DIM // 2)},
    "learned": {"learned_freq": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_queries_or_keys(kind):
    theirs, ours = both(DIM, **KINDS[kind])
    t = sample()
    for offset in (0, 3):
        got = ours.rotate_queries_or_keys(t, offset=offset)
        assert got.dtype == t.dtype and torch.equal(got[..., DIM:], t[..., DIM:])
        # Pixels turn by up to 540 radians over these positions.
        expected = theirs.rotate_queries_or_keys(t, offset=offset)
        close(got, expected, 4e-4 if kind == "pixel" else 2e-5)


@each_kind
def test_angles_of_positions(kind):
    theirs, ours = both(DIM, **KINDS[kind])
    positions = torch.tensor([[0.0, 1.0, 7.5], [3.0, 2.0, -1.0]])
    assert ours(positions).shape == (2, 3, DIM)
    close(ours(positions), theirs(positions), 1e-4)
    close(ours.get_seq_pos(5, offset=2), theirs.get_seq_pos(5, offset=2))
    assert ours.freqs.requires_grad == theirs.freqs.requires_grad


def test_learned_frequencies_get_the_same_gradient():
    gradients = []
    for rope in both(DIM, learned_freq=True):
        rotated = rope.rotate_queries_or_keys(sample())
        (rotated * rotated.detach().sin()).sum().backward()
        gradients.append(rope.freqs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("start_index", [0, 4, 8])
@pytest.mark.parametrize("axes", [2, 3, 4, 5])
def test_applies_to_part_of_a_head(axes, start_index):
    library = peer("rotary_embedding_torch")
    freqs = library.RotaryEmbedding(DIM)(torch.arange(SEQ + 5).float())
    t = sample(*(2, 2, 2)[: axes - 2], SEQ, HEAD)
    expected = library.apply_rotary_emb(freqs, t, start_index, scale=2.0)
    close(apply_rotary_emb(freqs, t, start_index, scale=2.0), expected)  # the last 40
    expected = library.apply_rotary_emb(freqs[3:4], t, start_index)
    close(apply_rotary_emb(freqs[3], t, start_index), expected)  # one for all tokens


def test_learned_rotations():
    library = peer("rotary_embedding_torch")
    rotations, t = sample(2, 1, SEQ, 4), sample()
    ranges = torch.tensor([1.0, 2.0])
    for more in ({}, {"start_index": 8}, {"freq_ranges": ranges}):
        expected = library.apply_learned_rotations(rotations, t, **more)
        close(apply_learned_rotations(rotations, t, **more), expected)


@pytest.mark.parametrize("kind", ["lang", "pixel", "constant"])
def test_axial(kind):
    library = peer("rotary_embedding_torch")
    theirs, ours = both(DIM, **KINDS[kind], cache_if_possible=False)
    t = sample(1, 2, 4, 5, 2 * DIM + 3)
    for offsets in (None, (10, 20), torch.tensor([0.5, 2.0])):
        expected = theirs.get_axial_freqs(4, 5, offsets=offsets)
        got = ours.get_axial_freqs(4, 5, offsets=offsets)
        assert got.shape == (4, 5, 2 * DIM)
        close(got, expected, 1e-4)
        expected = library.apply_rotary_emb(expected, t)
        close(apply_rotary_emb(got, t), expected, 1e-4)


@pytest.mark.parametrize("dim", [-1, 3, 0])
def test_broadcat(dim):
    library = peer("rotary_embedding_torch")
    rows, columns = sample(2, 4, 1, 3), sample(2, 1, 5, 3)
    expected = library.broadcat((rows, columns), dim)
    close(broadcat((rows, columns), dim), expected, 0)


@pytest.mark.parametrize("before", [False, True])
def test_queries_with_cached_keys(before):
    q, k = sample(2, 2, 3, SEQ, HEAD)
    new, expected = q[:, :, -3:], (exact(q)[:, :, -3:], exact(k))
    if before:
        new, k, *expected = (x.transpose(1, 2) for x in (new, k, *expected))
    theirs, ours = both(DIM, seq_before_head_dim=before)
    for rope in (theirs, ours):
        rotated = rope.rotate_queries_with_cached_keys(new, k)
        for got, wanted in zip(rotated, expected, strict=True):
            close(got, wanted)
    far_query, _ = theirs.rotate_queries_with_cached_keys(new, k, offset=5)
    close(ours.rotate_queries_with_cached_keys(new, k, offset=5)[0], far_query)


@pytest.mark.parametrize("interpolate_factor", [1.0, 2.0])
def test_xpos_with_the_originals_centre(interpolate_factor):
    more = {"use_xpos": True, "xpos_scale_base": 64}
    more["interpolate_factor"] = interpolate_factor
    theirs, _ = both(DIM, **more)
    ours = RotaryEmbedding(DIM, **more, xpos_origin=SEQ // 2)
    q, k = sample(2, 2, 3, SEQ, HEAD)
    expected = theirs.rotate_queries_and_keys(q, k)
    for got, wanted in zip(ours.rotate_queries_and_keys(q, k), expected, strict=True):
        close(got[..., :DIM], wanted[..., :DIM], 5e-5)
    scale = ours.get_scale(ours.get_seq_pos(SEQ))
    close(scale, theirs.get_scale(theirs.get_seq_pos(SEQ)))
    close(ours.rotate_queries_or_keys(q, scale=scale), expected[0], 5e-5)


def test_what_older_versions_called_it_with():
    rope = RotaryEmbedding(DIM)
    first = rope(torch.arange(5), cache_key="freqs:5")
    close(rope(lambda: torch.arange(5), cache_key=5), first, 0)
    close(rope(torch.arange(2, 7), cache_key=5)[:3], first[2:], 0)


@pytest.mark.parametrize("learned_freq", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_the_original_loads(learned_freq, dtype):
    theirs, ours = both(DIM, learned_freq=learned_freq)
    ours.load_state_dict(theirs.to(dtype).state_dict())
    t = sample()
    rounded = ours.rotate_queries_or_keys(t)
    if not learned_freq:
        assert not ours.state_dict()
        close(rounded, exact(t), 1e-6)  # by its arguments, not by what was rounded
    assert torch.equal(ours.half().rotate_queries_or_keys(t), rounded)


# ----------------------------------------------------- where the original is wrong


def test_positions_are_exact_for_16_bit_queries():
    theirs, ours = both(DIM)
    t = sample(1, 1, 1024, DIM, dtype=torch.bfloat16)
    far(theirs.rotate_queries_or_keys(t), exact(t), 3)
    close(ours.rotate_queries_or_keys(t), exact(t).bfloat16(), 2**-6)  # a rounding
    t = t.float()
    far(theirs.rotate_queries_or_keys(t), exact(t), 3)  # its cache still serves them
    close(ours.rotate_queries_or_keys(t), exact(t), 1e-6)


def test_a_module_in_bfloat16_keeps_its_frequencies():
    theirs, ours = (rope.bfloat16() for rope in both(DIM))
    t = sample(1, 1, 1024, DIM)
    far(theirs.rotate_queries_or_keys(t), exact(t), 1)
    close(ours.rotate_queries_or_keys(t), exact(t), 1e-6)


def test_positions_are_exact_at_a_million():
    theirs, ours = both(DIM)
    t = sample()
    offset = 1_000_000
    far(theirs.rotate_queries_or_keys(t, offset=offset), exact(t, offset), 0.01)
    close(ours.rotate_queries_or_keys(t, offset=offset), exact(t, offset), 1e-6)


def test_no_call_changes_what_a_later_one_gets():
    theirs, ours = both(DIM)
    first, second = torch.arange(100.0, 105.0), torch.arange(5.0)
    for rope in (theirs, ours):
        rope(first, seq_len=5)
    assert torch.equal(theirs(second, seq_len=5)[:, 0], first)
    assert torch.equal(ours(second, seq_len=5)[:, 0], second.double())

    theirs, ours = both(DIM)
    grids = [rope.get_axial_freqs(5, 4, offsets=(10, 20)) for rope in (theirs, ours)]
    columns = [grid[0, :, DIM] for grid in grids]  # of these, the offset is 20
    assert columns[0].tolist() == [10, 11, 12, 13]
    assert columns[1].tolist() == [20, 21, 22, 23]


def test_xpos_fits_cached_keys():
    theirs, ours = both(DIM, use_xpos=True, xpos_scale_base=64)
    q, k = sample(2, 1, 2, SEQ, DIM)

    def rows_differ(rope):
        all_q, all_k = rope.rotate_queries_and_keys(q, k)
        last_q, cached_k = rope.rotate_queries_with_cached_keys(q[:, :, -1:], k)
        full = (all_q @ all_k.mT)[:, :, -1:]
        return ((last_q @ cached_k.mT) / full - 1).abs().median()

    assert rows_differ(theirs) > 0.05
    assert rows_differ(ours) < 1e-5

    shorter = ours.rotate_queries_and_keys(q[:, :, :9], k[:, :, :9])
    for short, long in zip(shorter, ours.rotate_queries_and_keys(q, k), strict=True):
        close(short, long[:, :, :9], 0)  # keys once rotated stay valid

    theirs, ours = both(DIM, use_xpos=True, seq_before_head_dim=True)
    new, keys = q.transpose(1, 2)[:, -1:], k.transpose(1, 2)
    with pytest.raises(RuntimeError):
        theirs.rotate_queries_with_cached_keys(new, keys)
    assert ours.rotate_queries_with_cached_keys(new, keys)[0].shape == new.shape


def test_angles_follow_the_sequence_axis():
    library = peer("rotary_embedding_torch")
    rope, t = RotaryEmbedding(DIM), sample(2, SEQ, 3, HEAD)
    freqs, expected = rope(torch.arange(SEQ)), exact(t.transpose(1, 2)).transpose(1, 2)
    for seq_dim in (-3, 1):
        close(apply_rotary_emb(freqs, t, seq_dim=seq_dim), expected, 1e-6)
        close(rope.rotate_queries_or_keys(t, seq_dim), expected, 1e-6)
    with pytest.raises(RuntimeError):
        library.apply_rotary_emb(freqs, t, seq_dim=-3)
    square = t[:, :3]  # as many tokens as heads: rotated along the heads
    far(library.apply_rotary_emb(freqs[:3], square, seq_dim=-3), expected[:, :3], 0.1)
    close(apply_rotary_emb(freqs[:3], square, seq_dim=-3), expected[:, :3], 1e-6)


def test_angles_of_each_sequence():
    library = peer("rotary_embedding_torch")
    positions = torch.tensor([[0], [7], [2]]) + torch.arange(2)
    freqs, t = RotaryEmbedding(DIM)(positions), sample(3, 2, HEAD)
    got = apply_rotary_emb(freqs, t)
    close(got[1], exact(t[1], offset=7), 1e-6)
    with pytest.raises(RuntimeError):  # it cuts the batch to the number of tokens
        library.apply_rotary_emb(freqs, t)
    cut = apply_rotary_emb(torch.cat([freqs, freqs], dim=1), t, freqs_seq_dim=1)
    close(cut, got, 0)


def test_constant_frequencies_need_not_fill_dim():
    theirs, ours = both(DIM, freqs_for="constant", num_freqs=2)
    with pytest.raises(RuntimeError):
        theirs.rotate_queries_or_keys(sample())
    assert torch.equal(
        ours.rotate_queries_or_keys(sample())[..., 4:], sample()[..., 4:]
    )


def test_broadcat_keeps_every_width():
    library = peer("rotary_embedding_torch")
    rows, columns = sample(4, 1, 2), sample(5, 3)
    assert broadcat((rows, columns)).shape == (4, 5, 5)
    with pytest.raises(RuntimeError):
        library.broadcat((rows, columns))
    assert broadcat((rows[..., :1], columns)).shape == (4, 5, 4)
    assert library.broadcat((rows[..., :1], columns)).shape == (4, 5, 6)


# ------------------------------------------------------------------- ways of running


def test_compiles_and_vectorizes_to_the_same():
    rope = RotaryEmbedding(DIM, use_xpos=True)
    q, k = sample(2, 2, 3, SEQ, HEAD)
    expected = rope.rotate_queries_and_keys(q, k)
    call = rope.rotate_queries_and_keys
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for run in (compiled, torch.func.vmap(call)):
        for got, wanted in zip(run(q, k), expected, strict=True):
            close(got, wanted, 1e-6)


ROPE, XPOS, T = RotaryEmbedding(DIM), RotaryEmbedding(DIM, use_xpos=True), sample()
FREQS = ROPE(torch.arange(SEQ))
BAD = {
    "ValueError: dim must be even ... got 63": lambda: RotaryEmbedding(63),
    "ValueError: freqs_for must be 'lang' or 'pixel' or 'constant', got 'text'": (
        lambda: RotaryEmbedding(DIM, freqs_for="text")
    ),
    "ValueError: interpolate_factor must be finite and at least 1, got 0.5": lambda: (
        RotaryEmbedding(DIM, interpolate_factor=0.5)
    ),
    "ValueError: theta_rescale_factor ... at least 1, got 0": lambda: RotaryEmbedding(
        DIM, theta_rescale_factor=0
    ),
    "ValueError: base must be positive ... got -1": lambda: RotaryEmbedding(
        DIM, theta=-1
    ),
    "ValueError: max_freq must be positive ... got 0": lambda: RotaryEmbedding(
        DIM, freqs_for="pixel", max_freq=0
    ),
    "TypeError: custom_freqs must be a torch.Tensor, got list": lambda: RotaryEmbedding(
        DIM, [1.0]
    ),
    "ValueError: custom_freqs must be (r/2,) ... got (2, 8)": lambda: RotaryEmbedding(
        DIM, torch.ones(2, 8)
    ),
    "ValueError: xPos needs dim/2 = 8 freqs, got 1": lambda: RotaryEmbedding(
        DIM, freqs_for="constant", use_xpos=True
    ),
    "ValueError: scale_base must be positive ... got 0": lambda: RotaryEmbedding(
        DIM, use_xpos=True, xpos_scale_base=0
    ),
    "TypeError: positions must not be torch.bfloat16": lambda: ROPE(
        torch.arange(5).bfloat16()
    ),
    "ValueError: xPos ... use rotate_queries_and_keys": lambda: (
        XPOS.rotate_queries_or_keys(T)
    ),
    "ValueError: no scale without use_xpos": lambda: ROPE.get_scale(torch.arange(5)),
    "ValueError: q has 40 tokens and k has 39 ... cached": lambda: (
        ROPE.rotate_queries_and_keys(T, T[:, :, 1:])
    ),
    "ValueError: q has 40 tokens, more than k, which has 39": lambda: (
        ROPE.rotate_queries_with_cached_keys(T, T[:, :, 1:])
    ),
    "ValueError: offset must be one number, got shape (2,)": lambda: (
        ROPE.rotate_queries_or_keys(T, offset=torch.tensor([0, 1]))
    ),
    "ValueError: t of shape (24,) has no axis -2": lambda: ROPE.rotate_queries_or_keys(
        T[0, 0, 0]
    ),
    "TypeError: t must be a real floating-point": lambda: ROPE.rotate_queries_or_keys(
        T.long()
    ),
    "ValueError: seq_dim must be an axis before the last ... got 3": lambda: (
        apply_rotary_emb(FREQS, T, seq_dim=3)
    ),
    "ValueError: start_index=12 do not fit the 24 features": lambda: apply_rotary_emb(
        FREQS, T, start_index=12
    ),
    "ValueError: (39, 8) ... does not fit t of shape (2, 3, 40, 24)": lambda: (
        apply_rotary_emb(FREQS[1:], T)
    ),
    "ValueError: pairing='interleaved' ... other pairing": lambda: apply_rotary_emb(
        torch.cat([FREQS[:, ::2]] * 2, dim=-1), T
    ),
    "ValueError: scale ... torch.float16 ... xpos_origin": lambda: (
        XPOS.rotate_queries_and_keys(*sample(2, 1, 5000, DIM, dtype=torch.float16))
    ),
    "ValueError: at least one axis ... sizes () and 0 offsets": ROPE.get_axial_freqs,
    "ValueError: sizes (4, 5) and 1 offsets": lambda: ROPE.get_axial_freqs(
        4, 5, offsets=(1,)
    ),
    "ValueError: each size must be positive, got 0": lambda: ROPE.get_axial_freqs(0),
    "ValueError: broadcat needs at least one tensor": lambda: broadcat([]),
    "RuntimeError: freqs of the checkpoint ... 0.00427, not ... 0.000316": lambda: (
        ROPE.load_state_dict({"freqs": inverse_frequencies(DIM, 510)})
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)
