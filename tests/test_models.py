import pytest
import torch

from rope_teach.attention import ENCODINGS
from rope_teach.models import LanguageModel
from rope_teach.training import seed_everything


def small(**kwargs):
    seed_everything(0)
    kwargs = {"encoding": "rope", "max_len": 16} | kwargs
    return LanguageModel(11, 32, 2, 4, **kwargs)


def tokens(batch=2, seq=12):
    return torch.randint(11, (batch, seq), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shape_and_gradient_everywhere(encoding):
    model = small(encoding=encoding)
    logits = model(tokens(seq=16))
    assert logits.shape == (2, 16, 11)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_logit_depends_on_a_later_token(encoding):
    model, x = small(encoding=encoding), tokens()
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    moved = (model(x) - model(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 7 + [True] * 5


def test_without_position_and_mask_a_permutation_goes_through():
    model, x = small(encoding="none", causal=False), tokens()
    order = torch.randperm(12)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order])


@pytest.mark.parametrize("encoding", ["learned", "sinusoidal", "rope"])
def test_with_position_a_permutation_changes_the_result(encoding):
    model, x = small(encoding=encoding, causal=False), tokens()
    assert (model(x.flip(1)) - model(x).flip(1)).abs().max() > 1e-3


def test_only_the_learned_encoding_costs_parameters():
    size = {
        encoding: sum(p.numel() for p in small(encoding=encoding).parameters())
        for encoding in ENCODINGS
    }
    assert size.pop("learned") == size["none"] + 16 * 32
    assert set(size.values()) == {size["none"]}


def test_untrained_rows_have_no_gradient():
    model = small(encoding="learned")
    model(tokens(seq=10)).square().sum().backward()
    rows = model.position.weight.grad.norm(dim=1)
    assert (rows[:10] > 0).all() and (rows[10:] == 0).all()


def test_same_seed_same_model():
    x = tokens()
    assert torch.equal(small()(x), small()(x))


def test_partial_rotation_reaches_every_block():
    model = small(rotary_dim=4)
    assert [block.attention.rope.rotary_dim for block in model.blocks] == [4, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: small(encoding="learned")(tokens(seq=17)),
            "ValueError: max_len=16 rows ... nothing to say past its table",
        ),
        (
            lambda: small(encoding="learned", max_len=None),
            "ValueError: encoding='learned' needs max_len",
        ),
        (lambda: small(encoding="xpos"), "ValueError: encoding must be ... got 'xpos'"),
        (
            lambda: small()(tokens() + 5),
            "ValueError: token ids must lie between 0 and 10, got 5 to 15",
        ),
        (lambda: small()(tokens() - 1), "ValueError: between 0 and 10, got -1"),
        (
            lambda: small()(torch.randn(2, 5)),
            "TypeError: tokens must be int64 of shape (batch, seq), got torch.float32",
        ),
        (lambda: small()(tokens()[0]), "TypeError: of shape (12,)"),
    ],
)
def test_bad_input_is_named(refuses, call, message):
    refuses(call, message)
