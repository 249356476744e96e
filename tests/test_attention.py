import copy
import math

import pytest
import torch

from rope_teach import RotaryEmbedding, alibi_bias
from rope_teach.attention import (
    ENCODINGS,
    Attention,
    KeyValueCache,
    segment_mask,
    segment_positions,
    window_mask,
)


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def by_hand(attention, x, mask=None):
    """Attention as the formula has it, one head at a time."""
    heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
    seq, outputs = x.shape[1], []
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1) & attention.causal
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        shared = head // (heads // kv_heads)
        theirs = slice(shared * size, (shared + 1) * size)
        q = x @ attention.query.weight[own].T
        k = x @ attention.key.weight[theirs].T
        v = x @ attention.value.weight[theirs].T
        if attention.encoding == "rope":
            rope = RotaryEmbedding(size, rotary_dim=attention.rope.rotary_dim)
            q, k = rope.rotate(q), rope.rotate(k)
        logits = q @ k.transpose(1, 2) / math.sqrt(size)
        if attention.encoding == "alibi":
            logits = logits + alibi_bias(heads, seq)[head]
        hidden = (
            later if mask is None else later | ~mask[:, min(head, mask.shape[1] - 1)]
        )
        outputs.append(logits.masked_fill(hidden, -math.inf).softmax(-1) @ v)
    return torch.cat(outputs, -1) @ attention.out.weight.T


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_the_formula(encoding, causal, kv_heads):
    attention = Attention(32, 4, kv_heads=kv_heads, encoding=encoding, causal=causal)
    x = torch.randn(2, 7, 32)
    close(attention(x), by_hand(attention, x))


def test_partial_rotation_equals_the_formula():
    attention = Attention(32, 4, encoding="rope", rotary_dim=4)
    x = torch.randn(2, 7, 32)
    close(attention(x), by_hand(attention, x))
    whole = Attention(32, 4, encoding="rope")
    whole.load_state_dict(attention.state_dict())
    assert (whole(x) - attention(x)).abs().max() > 1e-3


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
def test_weights_are_what_forward_uses(encoding):
    attention = Attention(32, 4, kv_heads=2, encoding=encoding)
    x = torch.randn(2, 7, 32)
    weights = attention.weights(x)
    assert weights.shape == (2, 4, 7, 7)
    close(weights.sum(-1), torch.ones(2, 4, 7))
    assert (weights.triu(1) == 0).all()
    values = attention.value(x).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = weights @ values.repeat_interleave(2, dim=1)
    close(attention.out(mixed.transpose(1, 2).flatten(2)), attention(x))


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
def test_no_output_depends_on_a_later_token(encoding):
    attention = Attention(32, 4, encoding=encoding)
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 4:] += 1
    moved = (attention(x) - attention(changed)).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 2


def test_grouped_query_is_repeated_heads():
    grouped = Attention(32, 4, kv_heads=2, encoding="rope")
    full = Attention(32, 4, encoding="rope")
    repeated = {
        name: weight
        if name in ("query.weight", "out.weight")
        else weight.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
        for name, weight in grouped.state_dict().items()
    }
    full.load_state_dict(repeated)
    x = torch.randn(2, 7, 32)
    close(grouped(x), full(x))


@pytest.mark.parametrize("encoding", ["none", "alibi"])
def test_attention_without_direction_follows_a_permutation(encoding):
    attention = Attention(32, 4, encoding=encoding, causal=False)
    x = torch.randn(1, 6, 32)
    # ALiBi knows distance, so only mirroring keeps what it knows.
    order = torch.randperm(6) if encoding == "none" else torch.arange(5, -1, -1)
    close(attention(x[:, order]), attention(x)[:, order])


def test_rope_does_not_follow_a_mirrored_text():
    attention = Attention(32, 4, encoding="rope", causal=False)
    x = torch.randn(1, 6, 32)
    assert (attention(x.flip(1)) - attention(x).flip(1)).abs().max() > 1e-3


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_the_right_changes_nothing(encoding, causal):
    attention = Attention(32, 4, kv_heads=2, encoding=encoding, causal=causal)
    x = torch.randn(2, 7, 32)
    real = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7]).bool()
    out = attention(x, real[:, None, None])
    close(out[0, :4], attention(x[:1, :4])[0])
    close(out[1], attention(x[1:])[0])
    close(out, by_hand(attention, x, real[:, None, None].expand(-1, -1, 7, -1)))


def test_a_query_that_sees_nothing_returns_zeros():
    attention = Attention(32, 4)
    mask = torch.ones(1, 4, 5, 5, dtype=torch.bool)
    mask[:, :, 0, 0] = False
    out = attention(torch.randn(1, 5, 32), mask)
    assert (out[0, 0] == 0).all() and out.isfinite().all()


# ----------------------------------------------------- padding and packed sequences


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("corrected", [True, False])
def test_padding_on_the_left_changes_nothing(encoding, corrected):
    attention = Attention(32, 4, kv_heads=2, encoding=encoding)
    x = torch.randn(2, 7, 32)
    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7]).bool()
    # Positions from the first real token, or plain ones: only distances count.
    positions = segment_positions(real) if corrected else None
    out = attention(x, real[:, None, None], positions=positions)
    close(out[0, 3:], attention(x[:1, 3:])[0])
    close(out[1], attention(x[1:])[0])


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_are_as_if_alone(encoding, causal):
    attention = Attention(32, 4, encoding=encoding, causal=causal)
    x, segments = torch.randn(1, 9, 32), torch.tensor([[0] * 4 + [1] * 2 + [2] * 3])
    packed = attention(x, segment_mask(segments), positions=segment_positions(segments))
    for first, last in ((0, 4), (4, 6), (6, 9)):
        close(packed[:, first:last], attention(x[:, first:last]))


def test_segment_positions_restart():
    segments = torch.tensor([[5, 5, 5, 9, 5, 5], [0, 0, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert segment_positions(segments).tolist() == expected
    assert segment_positions(segments[1:].bool()).tolist() == expected[1:]
    assert segment_positions(segments[:, :0]).shape == (2, 0)


def test_a_window_hides_what_is_older():
    mask = window_mask(5, 3)
    assert mask.sum(1).tolist() == [1, 2, 3, 3, 3]
    assert torch.equal(window_mask(2, 3, 5), mask[-2:])
    assert torch.equal(window_mask(5, 9), torch.ones(5, 5).tril().bool())


def test_only_the_difference_of_positions_counts():
    attention = Attention(32, 4, encoding="rope").double()
    x, plain = torch.randn(1, 9, 32).double(), torch.arange(9)
    far = attention(x, positions=plain + 1_000_000)
    close(far, attention(x), atol=1e-9)
    assert (attention(x, positions=2 * plain) - far).abs().max() > 1e-3


# -------------------------------------------------------------- the key-value cache

CHUNKS = {
    "prefill": [12],
    "one by one": [1] * 12,
    "chunks": [5, 4, 3],
    "prefill, then one by one": [8, 1, 1, 1, 1],
    "an empty chunk": [4, 0, 8],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("start", [0, 1_000_000])
def test_cache_equals_the_full_pass(encoding, kv_heads, chunks, start):
    attention = Attention(32, 4, kv_heads=kv_heads, encoding=encoding)
    x, cache = torch.randn(2, 12, 32), KeyValueCache(start)
    parts = [attention(part, cache=cache) for part in x.split(CHUNKS[chunks], dim=1)]
    close(torch.cat(parts, 1), attention(x, positions=torch.arange(12) + start))
    assert cache.length == 12 and cache.next == start + 12
    # RoPE is exact up to rounding wherever the text starts.
    close(torch.cat(parts, 1), attention(x))


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("start", [0, 1_000_000])
def test_cache_of_a_left_padded_batch_equals_each_alone(encoding, chunks, start):
    attention = Attention(32, 4, kv_heads=2, encoding=encoding)
    x, cache = torch.randn(2, 12, 32), KeyValueCache()
    real = torch.tensor([[0] * 3 + [1] * 9, [1] * 12]).bool()
    parts, seen = [], 0
    for part in x.split(CHUNKS[chunks], dim=1):
        given = slice(seen, seen := seen + part.shape[1])
        # Only the first chunk says where it stands; then the cache counts on.
        counted = segment_positions(real)[:, given] + start
        positions = None if given.start else counted
        mask = real[:, None, None, :seen]
        parts.append(attention(part, mask, positions=positions, cache=cache))
    out = torch.cat(parts, 1)
    close(out[0, 3:], attention(x[:1, 3:])[0])
    close(out[1], attention(x[1:])[0])


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("start", [0, 1_000_000])
def test_dropping_the_oldest_keys_is_a_sliding_window(encoding, chunk, start):
    window = 5
    attention = Attention(32, 4, encoding=encoding)
    x, cache = torch.randn(2, 18, 32), KeyValueCache(start)
    parts = []
    for part in x.split(chunk, dim=1):
        cache.keep(window - 1)
        mask = window_mask(chunk, window, cache.length + chunk)
        parts.append(attention(part, mask, cache=cache))
    close(torch.cat(parts, 1), attention(x, window_mask(18, window)))
    assert cache.next == start + 18 and cache.length == window - 1 + chunk


def test_a_counter_that_restarts_after_dropping_would_be_wrong():
    attention = Attention(32, 4, encoding="rope")
    x, cache = torch.randn(1, 9, 32), KeyValueCache()
    attention(x[:, :8], cache=cache)
    cache.keep(4)
    restarted = copy.copy(cache)
    restarted.next = cache.length
    right, wrong = (attention(x[:, 8:], cache=c) for c in (cache, restarted))
    close(right, attention(x, window_mask(9, 5))[:, 8:])
    assert (right - wrong).abs().max() > 1e-3


def test_keys_are_rotated_once():
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    x = torch.randn(1, 6, 32)
    attention(x[:, :5], cache=cache)
    born = cache.keys.clone()
    attention(x[:, 5:], cache=cache)
    assert torch.equal(cache.keys[:, :, :5], born)
    keys = attention.key(x).unflatten(-1, (4, 8)).transpose(1, 2)
    close(cache.keys, attention.rope.rotate(keys))


def test_a_cache_with_a_start_begins_there(refuses):
    attention = Attention(32, 4, encoding="rope")
    x, ours = torch.randn(1, 3, 32), torch.arange(100, 103)
    refuses(
        lambda: attention(x, positions=torch.arange(3), cache=KeyValueCache(start=100)),
        "ValueError: the next position is 100, got positions that begin with 0",
    )
    cache = KeyValueCache(start=100)
    close(attention(x, positions=ours, cache=cache), attention(x, positions=ours))
    assert cache.next == 103


def test_gradients_flow_through_the_cache():
    attention, cache = Attention(32, 4, encoding="rope").double(), KeyValueCache()
    x = torch.randn(1, 6, 32, dtype=torch.float64, requires_grad=True)
    parts = [attention(part, cache=cache) for part in x.split(2, dim=1)]
    cached = torch.autograd.grad(torch.cat(parts, 1).square().sum(), x)
    close(cached[0], torch.autograd.grad(attention(x).square().sum(), x)[0])


def filled(batch=2, seq=4, **kwargs):
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache(**kwargs)
    attention(torch.randn(batch, seq, 32), cache=cache)
    return attention, cache


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        ((3, 1, 32), {}, "ValueError: batch=2, kv_heads=4 ... got (3, 4, 1, 8)"),
        (
            (2, 1, 32),
            {"positions": torch.tensor([0])},
            "ValueError: the next position is 4, got positions that begin with 0",
        ),
        (
            (2, 1, 32),
            {"positions": torch.tensor([[4], [5]])},
            "ValueError: next position is 4 ... begin with [4, 5]",
        ),
        (
            (2, 1, 32),
            {"mask": torch.ones(2, 1, 1, 4).bool()},
            "ValueError: (2, 4, 1, 5), got (2, 1, 1, 4); cached tokens are keys too",
        ),
    ],
)
def test_a_cache_refuses_what_does_not_continue_it(refuses, shape, more, message):
    attention, cache = filled()
    refuses(lambda: attention(torch.randn(shape), cache=cache, **more), message)


def test_swapped_axes_are_refused(refuses):
    keys, cache = torch.randn(2, 4, 6, 8), KeyValueCache()
    cache.append(keys, keys)
    one = keys[:, :, :1].transpose(1, 2)  # (batch, seq, heads, head_dim)
    refuses(lambda: cache.append(one, one), "ValueError: kv_heads=4 ... (2, 1, 4, 8)")


def test_a_cache_says_what_it_holds(refuses):
    cache = filled(start=7)[1]
    assert repr(cache) == "KeyValueCache(length=4, next=11)"
    cache.keep(0)
    assert (cache.length, cache.next) == (0, 11)
    refuses(lambda: cache.keep(-1), "ValueError: newest ... -1")
    refuses(lambda: KeyValueCache(start=1.5), "TypeError: start ... 1.5")


# -------------------------------------------------------------------- cross-attention


def test_cross_attention_reads_the_context_and_its_mask():
    attention = Attention(32, 4, kv_heads=2, causal=False)
    x, context = torch.randn(2, 3, 32), torch.randn(2, 7, 32)
    real = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7]).bool()
    out = attention(x, real[:, None, None], context=context)
    assert out.shape == (2, 3, 32)
    close(out[0], attention(x[:1], context=context[:1, :4])[0])
    close(out[1], attention(x[1:], context=context[1:])[0])
    close(attention(x, context=x), attention(x))
    weights = attention.weights(x, real[:, None, None], context=context)
    assert weights.shape == (2, 4, 3, 7) and (weights[0, ..., 4:] == 0).all()


def test_cross_attention_follows_a_permutation_of_the_context():
    attention, order = Attention(32, 4, causal=False), torch.randperm(7)
    x, context = torch.randn(2, 3, 32), torch.randn(2, 7, 32)
    close(attention(x, context=context[:, order]), attention(x, context=context))


def test_empty_inputs():
    assert Attention(32, 4, encoding="alibi")(torch.randn(0, 5, 32)).shape == (0, 5, 32)
    assert Attention(32, 4, encoding="rope")(torch.randn(2, 1, 32)).shape == (2, 1, 32)


X = torch.randn(2, 5, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(30, 4), "ValueError: dim=30 does not divide into heads=4"),
        (
            lambda: Attention(32, 4, kv_heads=3),
            "ValueError: heads=4 does not divide into kv_heads=3",
        ),
        (lambda: Attention(32, 0), "ValueError: heads must be a positive int, got 0"),
        (
            lambda: Attention(32, 4, encoding="rotary"),
            "ValueError: encoding must be 'none' ... got 'rotary'",
        ),
        (
            lambda: Attention(32, 4, encoding="alibi", rotary_dim=4),
            "ValueError: rotary_dim needs encoding='rope', got 'alibi'",
        ),
        (
            lambda: Attention(32, 4)(torch.randn(2, 4, 5, 8)),
            "ValueError: x must be (batch, seq, dim) with dim=32, got (2, 4, 5, 8)",
        ),
        (
            lambda: Attention(32, 4)(torch.ones(2, 5, 32, dtype=torch.long)),
            "TypeError: x must be a real floating-point tensor",
        ),
        (
            lambda: Attention(32, 4)(torch.randn(2, 5, 32), torch.ones(5, 5)),
            "TypeError: mask must be boolean, got torch.float32",
        ),
        (
            lambda: Attention(32, 4)(torch.randn(2, 5, 32), torch.ones(5, 4).bool()),
            "ValueError: broadcast to (batch, heads, queries, keys) = (2, 4, 5, 5)",
        ),
        (
            lambda: Attention(32, 4)(X, torch.ones(2, 5, 5).bool()),
            "ValueError: (2, 4, 5, 5), got (2, 5, 5)",
        ),
        (
            lambda: Attention(32, 4, encoding="rope")(X, positions=torch.arange(4)),
            "ValueError: positions must be (seq,) ... seq=5",
        ),
        (
            lambda: Attention(32, 4, encoding="rope", causal=False)(X, context=X),
            "ValueError: context needs encoding='none' ... got encoding='rope'",
        ),
        (lambda: Attention(32, 4)(X, context=X), "ValueError: causal=False ... True"),
        (
            lambda: Attention(32, 4, causal=False)(X, context=X[..., :8]),
            "ValueError: context must be (batch, seq, dim) with dim=32",
        ),
    ],
)
def test_bad_input_is_named(refuses, call, message):
    refuses(call, message)
