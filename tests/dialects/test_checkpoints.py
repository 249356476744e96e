"""Converted weights say the same by the other pairing, or are refused."""

import copy

import pytest
import torch

from rope_teach.dialects.hugging_face import convert_checkpoint, swap
from tests.dialects.peers import logits, tiny

# ---------------------------------------------------------------- other people's order

CONVERTED = {
    "Llama": ({"attention_bias": True}, {}),  # grouped keys: 4 heads and 2
    "GPTJ": ({"rotary_dim": 4}, {"rotary_dim": 4}),
    "Glm": (MODELS["Glm"], {"rotary_dim": 4}),
    "Qwen3": ({"head_dim": 8}, {}),
    "Cohere": ({"use_qk_norm": True}, {}),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_checkpoint_says_the_same_by_the_other_pairing(name):
    fields, partial_rotary = CONVERTED[name]
    model = tiny(name, **fields)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start at 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected, state = logits(model), copy.deepcopy(model.state_dict())
    own = "interleaved" if name in ("GPTJ", "Glm", "Cohere") else "half"
    other = "half" if own == "interleaved" else "interleaved"
    convert = {"head_dim": 8, **partial_rotary}
    converted = convert_checkpoint(state, source=own, target=other, **convert)
    assert list(converted) == list(state)

    swap(model, pairing=other)
    assert not torch.allclose(logits(model), expected, atol=1e-3)
    model.load_state_dict(converted)
    assert torch.allclose(logits(model), expected, atol=2e-5)

    back = convert_checkpoint(converted, source=other, target=own, **convert)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_metas_names_are_known():
    state = {
        f"layers.0.attention.{name}.weight": torch.randn(rows, 32)
        for name, rows in {"wq": 32, "wk": 16, "wv": 16, "wo": 32}.items()
    }
    got = convert_checkpoint(state, head_dim=8, source="interleaved", target="half")
    for (key, old), heads in zip(state.items(), (4, 2, None, None), strict=True):
        if heads is None:
            assert got[key] is old
        else:  # the script that made Hugging Face's checkpoints from Meta's
            permuted = old.view(heads, 4, 2, 32).transpose(1, 2).reshape(old.shape)
            assert torch.equal(got[key], permuted)
