import copy
import functools
import io
import itertools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from rope_teach import RotaryEmbedding, alibi_bias, inverse_frequencies
from rope_teach.attention import (
    ENCODINGS,
    Attention,
    KeyValueCache,
    packed_positions,
    segment_mask,
    segment_positions,
)
from rope_teach.axes import multimodal_frequencies, multimodal_positions
from rope_teach.course.masks import window_mask


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


# ------------------------------------------------------- the cache and its memory


class Written(TorchDispatchMode):
    """Counts the elements that operators write, views aside."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("copy_", "cat", "clone", "_to_copy", "index_copy_"):
            self.total += out.numel()
        return out


def step(length, heads=2, dtype=None):
    return torch.randn(2, heads, length, 8, dtype=dtype)


def held_after(cache, *lengths):
    """Append random keys and values; what a cache that concatenates would hold."""
    keys, values = [], []
    for length in lengths:
        keys.append(step(length))
        values.append(step(length))
        cache.append(keys[-1], values[-1])
    return torch.cat(keys, 2), torch.cat(values, 2)


@pytest.mark.parametrize("max_len", [None, 5000])
@pytest.mark.parametrize("context", [16, 4096])
def test_a_step_writes_its_own_token_and_nothing_else(context, max_len):
    cache = KeyValueCache(max_len=max_len)
    cache.append(step(context), step(context))
    new = step(1)
    with Written() as written:
        for _ in range(4):
            cache.append(new, new)
    assert written.total == 4 * 2 * new.numel()


@pytest.mark.parametrize("window", [None, 7, 32])
def test_what_a_long_text_moves_grows_with_its_length_alone(window):
    cache, new = KeyValueCache(), step(1)
    with Written() as written:
        for _ in range(1000):
            if window is not None:
                cache.keep(window)
            cache.append(new, new)
    assert written.total < 4 * 1000 * 2 * new.numel()


@pytest.mark.parametrize("room", [8, 16, 40])
def test_a_window_in_allocated_memory(room):
    cache = KeyValueCache(max_len=room)
    keys, values = held_after(cache, 8)
    for length in (0, 3, 1, 1, 3, 2, 1, 3, 3, 1):
        cache.keep(8 - length)
        more = step(length), step(length)
        cache.append(*more)
        keys = torch.cat([keys, more[0]], 2)[:, :, -8:]
        values = torch.cat([values, more[1]], 2)[:, :, -8:]
        assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    assert cache.next == 26 and cache.keys.untyped_storage().nbytes() == 4 * 32 * room


def test_dropped_tokens_give_their_memory_back():
    cache = KeyValueCache()
    held_after(cache, 1000)
    cache.keep(10)
    held_after(cache, 1)
    assert cache.keys.untyped_storage().nbytes() < 100 * cache.keys[:, :, 0].nbytes


def test_allocated_memory_stays_where_it_is_and_ends(refuses):
    cache = KeyValueCache(max_len=9)
    keys, values = held_after(cache, 5, 1, 3)
    assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    where = cache.keys.data_ptr()
    refuses(
        lambda: cache.append(step(1), step(1)),
        "ValueError: max_len=9 is too small for 10 tokens; keep()",
    )
    refuses(lambda: cache.slot(step(2)), "ValueError: max_len=9 ... 11 tokens")
    assert torch.equal(cache.keys, keys) and cache.next == cache.length == 9
    assert cache.keys.data_ptr() == where
    refuses(lambda: KeyValueCache(max_len=0), "ValueError: max_len must be positive")


def test_what_a_cache_returned_stays_as_it_was():
    cache, returned, copies = KeyValueCache(), [], []
    for length in (3, 1, 0, 6, 1, 1, 1, 1, 9):
        cache.keep(5)
        returned += cache.append(step(length), step(length))
        copies = [x.clone() for x in returned[-2:]] if not copies else copies
        copies += [x.clone() for x in returned[len(copies) :]]
    assert all(map(torch.equal, returned, copies))


def test_keys_can_be_written_into_their_slot():
    cache = KeyValueCache()
    keys, values = held_after(cache, 4, 1)
    more, new = step(2), step(2)
    slot = cache.slot(more)
    assert slot.shape == more.shape and cache.length == 5
    slot.copy_(more)
    with Written() as written:
        cache.append(slot, new)
    assert written.total == new.numel()  # the values alone
    assert torch.equal(cache.keys, torch.cat([keys, more], 2))
    assert torch.equal(cache.values, torch.cat([values, new], 2))


def test_no_slot_where_keys_cannot_be_written_in_place():
    cache = KeyValueCache()
    assert cache.slot(step(1).requires_grad_()) is None
    with torch.no_grad():
        assert cache.slot(step(1).requires_grad_()) is not None
    cache.append(step(3), step(3))
    assert cache.slot(step(1).bfloat16()) is None
    assert cache.slot(step(1).double()) is not None  # what is held is widened


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
def test_a_new_cache_begins_at_any_positions(encoding, grad):
    """Also where memory was asked for before the positions were seen."""
    attention, x = Attention(32, 4, encoding=encoding), torch.randn(2, 6, 32)
    padded = torch.arange(6) - torch.tensor([[3], [0]])
    for places in (torch.arange(6) + 7, padded):
        cache = KeyValueCache()
        with torch.set_grad_enabled(grad):
            whole = attention(x, positions=places)
            first = attention(x[:, :4], positions=places[..., :4], cache=cache)
            rest = attention(x[:, 4:], cache=cache)
        assert torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-6)


def test_a_wrong_mask_leaves_a_cache_as_it_was(refuses):
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    x = torch.randn(1, 7, 32)
    with torch.no_grad():
        attention(x[:, :6], cache=cache)
        wrong = torch.ones(1, 1, 1, 6, dtype=torch.bool)
        refuses(
            lambda: attention(x[:, 6:], wrong, cache=cache),
            "ValueError: mask ... (1, 4, 1, 7), got (1, 1, 1, 6)",
        )
        assert cache.length == cache.next == 6
        last = attention(x[:, 6:], cache=cache)
        assert torch.allclose(last, attention(x)[:, 6:], atol=1e-6)


def test_one_cache_in_two_layers_is_refused(refuses):
    first, second = (Attention(32, 4, encoding="rope") for _ in range(2))
    x, cache = torch.randn(1, 3, 32), KeyValueCache()
    first(x, cache=cache)
    refuses(
        lambda: second(x, cache=cache),
        "ValueError: this cache already holds the keys of another attention layer",
    )
    assert cache.length == cache.next == 3
    cache.keep(0)
    second(x, cache=cache)
    refuses(lambda: first(x, cache=cache), "ValueError: another attention layer")


def through_a_file(cache):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_a_file])
def test_a_copy_goes_on_by_itself(duplicate):
    attention, cache = Attention(32, 4, encoding="alibi"), KeyValueCache()
    with torch.no_grad():
        x = torch.randn(1, 9, 32)
        attention(x[:, :5], cache=cache)
        other = duplicate(cache)
        changed = torch.cat([x[:, :5], -x[:, 5:]], 1)
        branches = [(cache, attention, x), (other, copy.deepcopy(attention), changed)]
        # The two take turns, so that either could spoil the other's slots.
        for i in range(5, 9):
            for branch, layer, text in branches:
                got = layer(text[:, i : i + 1], cache=branch)
                close(got, layer(text)[:, i : i + 1])


MODES = (torch.inference_mode, torch.no_grad, torch.enable_grad)


@pytest.mark.parametrize("modes", list(itertools.permutations(MODES)))
def test_a_cache_goes_from_mode_to_mode(modes):
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    x, parts = torch.randn(2, 12, 32), []
    for part, mode in zip(x.split(2, dim=1), modes * 2, strict=True):
        with mode():
            parts.append(attention(part, cache=cache).detach().clone())
    close(torch.cat(parts, 1), attention(x).detach())


def pieces(attention, x, sizes, window=None):
    cache, parts = KeyValueCache(), []
    for part in x.split(sizes, dim=1):
        if window:
            cache.keep(window - part.shape[1])
        parts.append(attention(part, cache=cache))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
@pytest.mark.parametrize("window", [None, 4])
def test_gradients_through_a_cache_are_right(encoding, window):
    attention = Attention(8, 2, kv_heads=1, encoding=encoding).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)

    def run(x, *weights):
        names = dict(attention.named_parameters())
        given = dict(zip(names, weights, strict=True))
        call = functools.partial(torch.func.functional_call, attention, given)
        return pieces(lambda part, cache: call(part, {"cache": cache}), x, 2, window)

    assert torch.autograd.gradcheck(run, (x, *attention.parameters()))


@pytest.mark.parametrize("trained", ["query", "key", "value", "out"])
def test_gradients_where_one_projection_is_trained(trained):
    attention = Attention(32, 4, encoding="rope").double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    for name, weight in attention.named_parameters():
        weight.requires_grad_(name.startswith(trained))
    weight = getattr(attention, trained).weight
    exact = torch.autograd.grad(attention(x).square().sum(), weight)[0]
    got = torch.autograd.grad(pieces(attention, x, 1).square().sum(), weight)[0]
    close(got, exact, 1e-12)


def test_a_prompt_without_gradients_then_a_text_with_them():
    attention, cache = Attention(32, 4, encoding="rope").double(), KeyValueCache()
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    with torch.no_grad():
        attention(x[:, :4], cache=cache)
    loss = torch.cat([attention(t, cache=cache) for t in x[:, 4:].split(1, 1)]).sum()
    got = torch.autograd.grad(loss, attention.query.weight)[0]
    exact = torch.autograd.grad(attention(x)[:, 4:].sum(), attention.query.weight)[0]
    close(got, exact, 1e-12)  # of the queries alone: the prompt's keys are constants


def test_a_wider_dtype_loses_nothing_that_is_held():
    cache = KeyValueCache()
    narrow, wide = step(3).bfloat16(), step(2)
    cache.append(narrow, narrow)
    assert cache.keys.dtype == torch.bfloat16
    assert torch.equal(
        cache.append(wide, wide)[0], torch.cat([narrow.float(), wide], 2)
    )
    assert torch.equal(cache.append(narrow, narrow)[1][:, :, 3:5], wide)


def test_a_cache_under_autocast():
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    x = torch.randn(2, 9, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        parts = [attention(part, cache=cache) for part in x.split(1, dim=1)]
        close(torch.cat(parts, 1), attention(x), 0.02)
    assert cache.keys.dtype == torch.bfloat16


@pytest.mark.parametrize("max_len", [None, 64])
def test_decoding_compiles_once_not_at_every_step(max_len):
    attention, x = Attention(32, 4, kv_heads=2, encoding="rope"), torch.randn(2, 40, 32)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=graphs)
    cache, parts = KeyValueCache(max_len=max_len), []
    with torch.no_grad():
        for part in x.split([8] + [1] * 32, dim=1):
            parts.append(compiled(part, cache=cache))
        close(torch.cat(parts, 1), attention(x))
    assert graphs.frame_count <= (2 if max_len else 7)


def test_a_compiled_step_takes_positions():
    attention, x = Attention(32, 4, encoding="alibi"), torch.randn(2, 9, 32)
    places = torch.randint(0, 50, (2, 9)).sort().values
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    cache = KeyValueCache()
    with torch.no_grad():
        parts = [
            compiled(x[:, i : i + 1], positions=places[:, i : i + 1], cache=cache)
            for i in range(9)
        ]
    close(torch.cat(parts, 1), attention(x, positions=places).detach())
    assert torch.equal(cache.positions, places)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ((step(1), step(2)), "ValueError: keys and values must agree ... (2, 2, 2, 8)"),
        ((step(1), step(1, heads=3)), "ValueError: holds values (batch=2, kv_heads=2"),
        ((step(1)[0], step(1)[0]), "ValueError: keys must be (batch, kv_heads, seq"),
        ((step(1).to("meta"), step(1)), "ValueError: holds keys on cpu, got meta"),
        ((step(1).long(), step(1)), "TypeError: keys must be a real floating-point"),
        (
            (step(2), step(2), torch.tensor([4])),
            "ValueError: positions must be (seq,) or (batch, seq) = (2, 2)",
        ),
    ],
)
def test_a_cache_that_refuses_keeps_what_it_has(refuses, new, message):
    cache = KeyValueCache()
    keys, values = held_after(cache, 4)
    refuses(lambda: cache.append(*new), message)
    assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    assert cache.next == 4


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_cached_step_asks_no_device_for_values(encoding):
    with torch.device("meta"):
        attention, cache = Attention(32, 4, encoding=encoding), KeyValueCache()
        for step in range(3):
            positions = torch.zeros(2, 4, dtype=torch.long) if step != 1 else None
            x = torch.randn(2, 4, 32)
            assert attention(x, positions=positions, cache=cache).shape == (2, 4, 32)
    assert cache.length == 12 and cache.keys.is_meta


def test_positions_of_one_row_serve_the_whole_batch():
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    x = torch.randn(3, 5, 32)
    parts = [attention(x[:, :4], positions=torch.arange(4)[None], cache=cache)]
    parts.append(attention(x[:, 4:], cache=cache))
    close(torch.cat(parts, 1), attention(x))


def test_text_goes_on_after_a_picture():
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    bank = multimodal_frequencies(inverse_frequencies(8), (2, 1, 1))
    attention.rope = RotaryEmbedding(8, inv_freq=bank)
    places = multimodal_positions([2, (1, 3, 4), 2]).expand(2, -1, -1)
    x = torch.randn(2, 16, 32)
    parts = [
        attention(x[:, part], positions=places[:, part], cache=cache)
        for part in (slice(0, 2), slice(2, 14), slice(14, 16))
    ]
    close(torch.cat(parts, 1), attention(x, positions=places))
    assert cache.next.tolist() == [8, 8]
    # As transformers lays them out; then text alone.
    cache = KeyValueCache()
    first = attention(x[:, :14], positions=places[:, :14].permute(2, 0, 1), cache=cache)
    second = attention(x[:, 14:], cache=cache)
    close(torch.cat([first, second], 1), torch.cat(parts, 1))


def test_keys_are_rotated_into_the_memory_of_the_cache():
    attention, cache = Attention(32, 4, encoding="rope"), KeyValueCache()
    with torch.no_grad():
        attention(torch.randn(2, 5, 32), cache=cache)
        with Written() as written:
            attention(torch.randn(2, 1, 32), cache=cache)
    assert written.total == 2 * 32  # the values of one token, and no key


# ------------------------------------------------------------- ALiBi and positions


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_alibi_counts_from_the_positions_it_is_given(causal, batch):
    attention = Attention(32, 4, encoding="alibi", causal=causal)
    x, places = torch.randn(2, 7, 32), torch.randint(0, 99, (batch, 7))
    distance = (places[:, :, None] - places[:, None]).abs()[:, None]
    slopes = torch.tensor([2.0 ** (-2 * h) for h in range(1, 5)])[:, None, None]
    q, k, v = (
        layer(x).unflatten(-1, (4, 8)).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    logits = q @ k.mT / math.sqrt(8) - slopes * distance
    if causal:
        logits = logits.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    weights = logits.softmax(-1)
    out = attention.out((weights @ v).transpose(1, 2).flatten(2))
    close(attention(x, positions=places), out)
    close(attention.weights(x, positions=places), weights)
    if batch == 1:
        close(attention(x, positions=places[0]), out)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("window", [None, 5])
def test_alibi_remembers_where_cached_keys_are(chunks, window):
    attention, cache = Attention(32, 4, encoding="alibi"), KeyValueCache()
    x, places = torch.randn(2, 12, 32), torch.randint(0, 60, (2, 12)).sort().values
    parts, seen = [], 0
    full = window_mask(12, window or 12)
    for part in x.split(CHUNKS[chunks], dim=1):
        own = slice(seen, seen := seen + part.shape[1])
        cache.keep(window - 1 if window else 12)
        cache.next = places[:, own][:, 0] if part.shape[1] else cache.next
        mask = full[own, seen - part.shape[1] - cache.length : seen]
        parts.append(attention(part, mask, positions=places[:, own], cache=cache))
    close(torch.cat(parts, 1), attention(x, full, positions=places))


def test_alibi_refuses_positions_that_do_not_fit(refuses):
    attention = Attention(32, 4, encoding="alibi")
    for positions in (torch.arange(4), torch.zeros(3, 5).long()):
        refuses(
            lambda positions=positions: attention(X, positions=positions),
            "ValueError: positions must be (seq,) or (batch, seq) = (2, 5)",
        )


# ---------------------------------------------------------- positions from cu_seqlens


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "lengths", [[], [1], [5], [0], [3, 1, 4], [2, 0, 0, 3], [0, 2], [2, 0], [1] * 9]
)
def test_packed_positions_equal_a_loop(lengths, dtype):
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)
    expected = [place for length in lengths for place in range(length)]
    got = packed_positions(bounds)
    assert got.tolist() == expected and got.dtype == torch.int64
    assert packed_positions(bounds, sum(lengths)).tolist() == expected
    # A buffer with room to spare, as in a captured graph.
    assert packed_positions(bounds, sum(lengths) + 2).tolist() == [*expected, 0, 1]


def test_packed_positions_compile_where_their_number_is_given():
    def positions(bounds):
        return packed_positions(bounds, 7)

    compiled = torch.compile(positions, fullgraph=True, backend="aot_eager")
    for bounds in ([0, 3, 7], [0, 0, 7], [0, 5, 5]):
        bounds = torch.tensor(bounds, dtype=torch.int32)
        assert torch.equal(compiled(bounds), positions(bounds))


def test_sequences_packed_by_their_bounds_are_as_if_alone():
    attention = Attention(32, 4, encoding="rope")
    x, bounds = torch.randn(1, 9, 32), torch.tensor([0, 4, 6, 9], dtype=torch.int32)
    positions = packed_positions(bounds)
    mask = segment_mask((positions == 0).cumsum(0)[None])
    packed = attention(x, mask, positions=positions)
    for first, last in itertools.pairwise(bounds.tolist()):
        close(packed[:, first:last], attention(x[:, first:last]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: packed_positions(torch.tensor([0.0, 3.0])),
            "TypeError: cu_seqlens must be int64 or int32, got torch.float32",
        ),
        (lambda: packed_positions([0, 3]), "TypeError: cu_seqlens ... list"),
        (
            lambda: packed_positions(torch.tensor([[0, 3]])),
            "ValueError: cu_seqlens must be (sequences + 1,), got (1, 2)",
        ),
        (lambda: packed_positions(torch.tensor([]).long()), "ValueError: got (0,)"),
        (
            lambda: packed_positions(torch.tensor([3, 4])),
            "ValueError: cu_seqlens must rise from 0 ... [3, 4]",
        ),
        (
            lambda: packed_positions(torch.tensor([0, 4, 2])),
            "ValueError: cu_seqlens must rise from 0 ... [0, 4, 2]",
        ),
        (
            lambda: packed_positions(torch.tensor([0, 4]), 3),
            "ValueError: at most total ... total=3 and [0, 4]",
        ),
        (lambda: packed_positions(torch.tensor([0, 4]), 4.0), "TypeError: total ... 4"),
    ],
)
def test_bounds_that_are_wrong_are_named(refuses, call, message):
    refuses(call, message)


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
        (lambda: Attention(32, 0), "ValueError: heads must be positive, got 0"),
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
            lambda: Attention(32, 4)(torch.randn(2, 5, 32), [[True] * 5] * 5),
            "TypeError: mask must be boolean, got list ([[True, ",
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
            lambda: Attention(32, 4, encoding="rope")(X, tables=torch.arange(5)),
            "TypeError: tables must be made by RotaryEmbedding.tables",
        ),
        (
            lambda: segment_positions(torch.arange(5)),
            "ValueError: segments must be (batch, seq), got (5,)",
        ),
        (lambda: segment_mask(torch.arange(5)), "ValueError: segments ... got (5,)"),
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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_a_cache_counts_past_what_narrow_positions_hold(dtype):
    cache, last = KeyValueCache(), torch.iinfo(dtype).max
    x = torch.randn(1, 2, 3, 4)
    cache.append(x, x, positions=torch.arange(last - 2, last + 1).to(dtype))
    assert cache.next == last + 1
