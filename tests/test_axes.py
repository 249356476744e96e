"""Several axes: images, M-RoPE, learned frequencies; parity with other libraries."""

import copy
import json
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn

from rope_teach import (
    RotaryEmbedding,
    angles,
    inverse_frequencies,
    rotate,
    rotate_matrix,
)
from rope_teach.axes import (
    axial_frequencies,
    constant_frequencies,
    grid_positions,
    mixed_frequencies,
    multimodal_frequencies,
    multimodal_positions,
    pixel_frequencies,
    pixel_positions,
)
from rope_teach.frequencies import position_interpolation
from tests.test_peers import peer

D = 16
GRID = grid_positions(4, 5)


def sample(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)


# --------------------------------------------------------------------- one rule


def test_turns_of_all_axes_add_up():
    inv_freq = torch.tensor([[1.0, 0.5], [0.1, 0.0]], dtype=torch.float64)
    close(angles(torch.tensor([3, 7]), inv_freq), torch.tensor([3.7, 1.5]))


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_a_grid_equals_one_matrix_a_cell(pairing, layout):
    rope = RotaryEmbedding(D, axes=2, base=100.0, pairing=pairing, layout=layout)
    x = sample(2, 3, 20, D)
    exact = rotate_matrix(x, angles(GRID, rope.inv_freq), pairing)
    given = x if layout == "bhsd" else x.transpose(1, 2)
    for positions in (GRID, GRID.expand(2, -1, -1)):
        got = rope.rotate(given, positions)
        close(got if layout == "bhsd" else got.transpose(1, 2), exact, 1e-12)


def test_one_axis_is_plain_rope():
    x, steps = sample(1, 2, 7, D), torch.arange(7)
    given = RotaryEmbedding(D, inv_freq=inverse_frequencies(D))
    as_row = RotaryEmbedding(D, inv_freq=inverse_frequencies(D)[None])
    plain = RotaryEmbedding(D).rotate(x)
    assert torch.equal(given.rotate(x), plain)
    assert torch.equal(as_row.rotate(x, steps), plain)
    assert as_row.axes == 1


KINDS = {
    "axial": RotaryEmbedding(D, axes=2, base=100.0).inv_freq,
    "pixel": axial_frequencies(pixel_frequencies(8), pixel_frequencies(8)),
    "constant": axial_frequencies(constant_frequencies(8), constant_frequencies(8)),
    "mixed": mixed_frequencies(inverse_frequencies(D, 10.0)),
    "multimodal": multimodal_frequencies(inverse_frequencies(D), (5, 3)),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_depend_on_the_offset_alone(kind, learned):
    rope = RotaryEmbedding(D, inv_freq=KINDS[kind], learned=learned)
    q, k = sample(2, 1, 1, 20, D).unbind()
    scores = []
    for shift in ([0, 0], [5, 0], [0, -3], [1_000, 999]):
        turned = rope(q, k, GRID + torch.tensor(shift))
        scores.append(turned[0] @ turned[1].mT)
    for moved in scores[1:]:
        close(moved, scores[0], 1e-9)
    # And on the offset indeed: two keys that stand elsewhere get another score.
    turned = rope(q, k, GRID * torch.tensor([2, 3]))
    assert (turned[0] @ turned[1].mT - scores[0]).abs().max() > 0.1


def test_flat_positions_change_their_meaning_with_the_width():
    """Why images need axes: "one row below" is another distance on a wider grid."""
    below = [(grid_positions(6, w)[:, 0] * w)[w].item() for w in (6, 7)]
    assert below == [6, 7]


def test_each_axis_gets_the_rule():
    rope = RotaryEmbedding(
        D, axes=2, scaling=lambda r, b: position_interpolation(r, b, factor=4)
    )
    slow = inverse_frequencies(8) / 4
    close(rope.inv_freq, axial_frequencies(slow, slow), 1e-15)


# ---------------------------------------------------------------- learned rotations


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_frequencies_receive_their_gradient(pairing):
    start = mixed_frequencies(inverse_frequencies(D, 10.0))
    rope = RotaryEmbedding(D, inv_freq=start, learned=True, pairing=pairing)
    q, k = sample(2, 1, 2, 20, D).unbind()
    turned = rope(q, k, GRID)
    (turned[0] @ turned[1].mT).square().mean().backward()

    free = rope.frequencies.detach().double().requires_grad_()
    angle = angles(GRID, free)
    exact = [rotate_matrix(x, angle, pairing) for x in (q, k)]
    (exact[0] @ exact[1].mT).square().mean().backward()
    assert free.grad.abs().min() > 1e-6
    torch.testing.assert_close(rope.frequencies.grad.double(), free.grad)


def test_a_step_of_training_is_seen_by_the_next_call():
    rope = RotaryEmbedding(D, learned=True)
    x = sample(1, 1, 9, D)
    before = rope.rotate(x)
    with torch.no_grad():
        rope.frequencies.mul_(2)
    close(rope.rotate(x), RotaryEmbedding(D).rotate(x, 2 * torch.arange(9)), 1e-6)
    assert not torch.equal(rope.rotate(x), before)


def test_learned_frequencies_are_kept_and_stay_float32():
    rope = RotaryEmbedding(D, axes=2, learned=True)
    assert list(rope.state_dict()) == ["frequencies"]
    exact = rope.frequencies.clone()
    for move in (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float16)):
        assert torch.equal(move(rope).frequencies, exact)
        assert rope.frequencies.dtype == torch.float32
    assert torch.equal(copy.deepcopy(rope).frequencies, exact)
    fixed = RotaryEmbedding(D, inv_freq=KINDS["mixed"])
    assert not list(fixed.parameters()) and not fixed.state_dict()
    assert torch.equal(fixed.half().inv_freq, KINDS["mixed"])


def test_learned_frequencies_compile_without_a_break():
    rope = RotaryEmbedding(D, axes=2, learned=True)
    q, k = sample(2, 1, 2, 20, D, dtype=torch.float32).unbind()
    fast = torch.compile(rope, fullgraph=True, backend="aot_eager")
    gradients = []
    for turned in (fast(q, k, GRID), rope(q, k, GRID)):
        score = (turned[0] @ turned[1].mT).square().mean()
        gradients.append(torch.autograd.grad(score, rope.frequencies)[0])
    torch.testing.assert_close(*gradients)


# ------------------------------------------------------------------------ parity


@pytest.mark.parametrize("kind", ["lang", "pixel", "constant"])
def test_rotary_embedding_torch_axial(kind):
    library = peer("rotary_embedding_torch")
    theirs = library.RotaryEmbedding(8, freqs_for=kind, theta=100.0, num_freqs=4)
    freqs = theirs.get_axial_freqs(4, 5)
    x = sample(1, 2, 20, D, dtype=torch.float32)
    expected = library.apply_rotary_emb(freqs, x.unflatten(2, (4, 5)), seq_dim=-3)

    one = {
        "lang": inverse_frequencies(8, 100.0),
        "pixel": pixel_frequencies(8),
        "constant": constant_frequencies(8),
    }[kind]
    rope = RotaryEmbedding(D, inv_freq=axial_frequencies(one, one))
    positions = pixel_positions(4, 5) if kind == "pixel" else GRID
    close(rope.rotate(x, positions), expected.flatten(2, 3), 4e-6)


TIMM = json.loads((Path(__file__).parent / "references/timm.json").read_text())


@pytest.mark.parametrize("kind", ["axial", "pixel", "mixed"])
def test_timm(kind):
    """What timm printed, kept in a file that says which call, and why a file."""
    one = pixel_frequencies(8) if kind == "pixel" else inverse_frequencies(8, 100.0)
    inv_freq, positions = axial_frequencies(one, one), grid_positions(2, 3)
    if kind == "pixel":
        positions = pixel_positions(2, 3)
    if kind == "mixed":  # timm counts x first
        inv_freq = torch.tensor(TIMM["mixed"]["frequencies"]).flip(0)
    x = torch.arange(96).double().sin().float().reshape(1, 1, 6, 16)
    got = RotaryEmbedding(D, inv_freq=inv_freq).rotate(x, positions)
    close(got[0, 0], torch.tensor(TIMM[kind]["rotated"]), 2e-6)


def qwen(name, sections):
    """The text half of Qwen2-VL or Qwen3-VL: its module of tables, and its rotation."""
    code = peer(f"transformers.models.{name}.modeling_{name}")
    kind = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}[name]
    config = getattr(code, f"{kind}TextConfig")(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": list(sections),
        },
    )
    text = "Text" if name == "qwen3_vl" else ""
    return getattr(code, f"{kind}{text}RotaryEmbedding")(config), code


@pytest.mark.parametrize(
    ("name", "sections"), [("qwen2_vl", (16, 24, 24)), ("qwen3_vl", (24, 20, 20))]
)
def test_qwen_multimodal(name, sections):
    tables, code = qwen(name, sections)
    positions = multimodal_positions([5, (2, 4, 6), 3])
    inv_freq = inverse_frequencies(128, 1_000_000.0)
    inv_freq = multimodal_frequencies(inv_freq, sections, name == "qwen3_vl")
    rope = RotaryEmbedding(128, inv_freq=inv_freq, pairing="half")
    q, k = sample(2, 1, 2, len(positions), 128, dtype=torch.float32).unbind()
    expected = code.apply_rotary_pos_emb(q, k, *tables(q, positions.T[:, None]))
    for got, theirs in zip(rope(q, k, positions), expected, strict=True):
        close(got, theirs, 5e-6)


def test_qwen_multimodal_positions():
    code = peer("transformers.models.qwen2_vl.modeling_qwen2_vl")
    vision = SimpleNamespace(spatial_merge_size=1)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    kinds = torch.tensor([[0] * 5 + [1] * 24 + [0] * 3])
    model.get_vision_position_ids = MethodType(
        code.Qwen2VLModel.get_vision_position_ids, model
    )
    expected, _ = code.Qwen2VLModel.get_rope_index(
        model, kinds, kinds, image_grid_thw=torch.tensor([[1, 4, 6]])
    )
    assert torch.equal(multimodal_positions([5, (1, 4, 6), 3]).T, expected[:, 0])


def test_text_cannot_tell_multimodal_from_plain():
    rope = RotaryEmbedding(
        D, inv_freq=multimodal_frequencies(inverse_frequencies(D), (4, 2, 2))
    )
    x = sample(1, 1, 9, D)
    close(
        rope.rotate(x, multimodal_positions([9])), RotaryEmbedding(D).rotate(x), 1e-12
    )


# ------------------------------------------------------------------------ messages

BAD = {
    "ValueError: positions must be (seq, axes) ... seq=20, batch=1 and axes=2 ... got (20,)": (
        lambda: RotaryEmbedding(D, axes=2).rotate(sample(1, 1, 20, D), torch.arange(20))
    ),
    "ValueError: a position has 2 coordinates ... grid_positions": lambda: (
        RotaryEmbedding(D, axes=2).rotate(sample(1, 1, 20, D))
    ),
    "ValueError: rotary_dim=16 does not divide into pairs for axes=3": lambda: (
        RotaryEmbedding(D, axes=3)
    ),
    "ValueError: inv_freq must be (r/2,) or (axes, r/2) ... 8, got (2, 7)": lambda: (
        RotaryEmbedding(D, inv_freq=torch.ones(2, 7))
    ),
    "ValueError: inv_freq must be (r/2,) ... got (3, 8) with axes=2": lambda: (
        RotaryEmbedding(D, inv_freq=torch.ones(3, 8), axes=2)
    ),
    "ValueError: give inv_freq or scaling, not both": lambda: RotaryEmbedding(
        D, inv_freq=torch.ones(8), scaling=position_interpolation
    ),
    "ValueError: inv_freq must be finite": lambda: RotaryEmbedding(
        D, inv_freq=torch.full((8,), torch.nan)
    ),
    "TypeError: inv_freq must be a torch.Tensor, got list": lambda: RotaryEmbedding(
        2, inv_freq=[1.0]
    ),
    "ValueError: inv_freq has 2 axes ... got (5, 3)": lambda: angles(
        torch.ones(5, 3), torch.ones(2, 4)
    ),
    "ValueError: a grid needs the size of at least one axis": grid_positions,
    "ValueError: each size must be positive, got 0": lambda: grid_positions(3, 0),
    "ValueError: axial_frequencies needs one (r/2,) tensor": lambda: axial_frequencies(
        torch.ones(2, 2)
    ),
    "ValueError: max_freq must be positive": lambda: pixel_frequencies(8, -1.0),
    "ValueError: sections must be pairs of each axis that sum to r/2 = 8": lambda: (
        multimodal_frequencies(torch.ones(8), (4, 2, 1))
    ),
    "ValueError: sections (2, 3, 3) cannot be given in turn": lambda: (
        multimodal_frequencies(torch.ones(8), (2, 3, 3), interleaved=True)
    ),
    "ValueError: an image or video is (time, height, width) ... got (2, 2)": lambda: (
        multimodal_positions([(2, 2)])
    ),
    "ValueError: inv_freq must be (r/2,), got (2, 2)": lambda: mixed_frequencies(
        torch.ones(2, 2)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(refuses, message):
    refuses(BAD[message], message)


def test_rotation_takes_what_angles_gives():
    x = sample(20, D)
    angle = angles(GRID, KINDS["axial"])
    close(rotate(x, angle.cos(), angle.sin()), rotate_matrix(x, angle), 1e-12)
