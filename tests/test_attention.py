import math

import pytest
import torch

from rope_teach import RotaryEmbedding, alibi_bias
from rope_teach.attention import ENCODINGS, Attention


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


def test_empty_inputs():
    assert Attention(32, 4, encoding="alibi")(torch.randn(0, 5, 32)).shape == (0, 5, 32)
    assert Attention(32, 4, encoding="rope")(torch.randn(2, 1, 32)).shape == (2, 1, 32)


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
    ],
)
def test_bad_input_is_named(refuses, call, message):
    refuses(call, message)
