"""Several axes: images, M-RoPE, learned frequencies; parity with other libraries."""

import copy
import json
import random
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
    "constant": axial_frequencies(torch.ones(4).double(), torch.ones(4).double()),
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
        "constant": torch.ones(4).double(),
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


def qwen_positions(code, model_class, parts, tokens_per_second=1):
    """``get_rope_index`` of transformers for ``parts``, in cells of merged patches."""
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    cls = getattr(code, model_class)
    model.get_vision_position_ids = MethodType(cls.get_vision_position_ids, model)
    kinds, grids, seconds = [], {1: [], 2: []}, []
    for part in parts:
        if isinstance(part, int):
            kinds += [0] * part
            continue
        time, height, width, *interval = part
        kind = 2 if time > 1 or interval else 1
        kinds += [kind] * (time * height * width)
        grids[kind].append([time, 2 * height, 2 * width])
        seconds += [each / tokens_per_second for each in interval]
    ids = torch.tensor([kinds])
    given = {
        "image_grid_thw": torch.tensor(grids[1]) if grids[1] else None,
        "video_grid_thw": torch.tensor(grids[2]) if grids[2] else None,
    }
    if seconds:
        given["second_per_grid_ts"] = torch.tensor(seconds)
    return cls.get_rope_index(model, ids, ids, **given)[0][:, 0].T


def random_prompts(count, video):
    """Text, pictures and videos in turn; ``video(height, width)`` makes a video."""
    chance = random.Random(0)
    for _ in range(count):
        parts = [chance.randint(1, 5)]
        for _ in range(chance.randint(1, 4)):
            height, width = chance.randint(1, 6), chance.randint(1, 6)
            is_video = chance.random() < 0.5
            parts.append(video(height, width) if is_video else (1, height, width))
            parts.append(chance.randint(1, 5))
        yield parts


QWEN = {
    "qwen2_vl": "Qwen2VLModel",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "qwen3_vl": "Qwen3VLModel",
}


@pytest.mark.parametrize("name", QWEN)
def test_qwen_multimodal_positions(name):
    code = peer(f"transformers.models.{name}.modeling_{name}")

    def still(height, width):  # Qwen3-VL gives each frame of a video by itself
        return 1, height, width

    def short(height, width):  # a video no longer than its picture is wide
        return max(height, width), height, width

    for parts in random_prompts(100, still if name == "qwen3_vl" else short):
        expected = qwen_positions(code, QWEN[name], parts)
        assert torch.equal(multimodal_positions(parts), expected), parts


def test_the_interval_between_frames():
    """Qwen2.5-VL; where its text goes on is the next test's."""
    code = peer("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    chance = random.Random(1)
    for tokens_per_second in (1, 2, 25):
        for _ in range(100):
            seconds = chance.choice([0.1, 0.5, 0.7, 1 / 3, chance.uniform(0, 3)])
            sizes = (chance.randint(1, 40), chance.randint(1, 4), chance.randint(1, 4))
            # As its processor does: seconds are a float32 tensor.
            interval = float(tokens_per_second * torch.tensor(float(seconds)))
            parts = [2, (*sizes, interval)]
            expected = qwen_positions(code, "Qwen2_5_VLModel", parts, tokens_per_second)
            assert torch.equal(multimodal_positions(parts), expected), parts


def test_where_text_goes_on_after_a_long_video():
    code = peer("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    for interval in (1.0, 2.5):
        parts = [2, (9, 3, 4, interval), 3]
        ours = multimodal_positions(parts)
        theirs = qwen_positions(code, "Qwen2_5_VLModel", parts)
        assert torch.equal(ours[:-3], theirs[:-3])
        assert ours[-3:, 0].tolist() == [2 + int(8 * interval) + i for i in (1, 2, 3)]
        assert theirs[-3:, 0].tolist() == [2 + max(3, 4) + i for i in (0, 1, 2)]


# ------------------------------------------------- frequencies that heads do not share


@pytest.mark.parametrize("learned", [False, True])
def test_frequencies_of_each_head_are_one_wide_bank(learned):
    """RoPE-Mixed's checkpoints have (axes, heads, r/2), and interleaved pairs."""
    heads, x = 3, sample(2, 3, 20, D)
    frequencies = sample(2, heads, D // 2)
    apart = [
        rotate_matrix(x[:, h], angles(GRID, frequencies[:, h])) for h in range(heads)
    ]
    exact = torch.stack(apart, dim=1)
    bank = frequencies.flatten(1)

    rope = RotaryEmbedding(heads * D, inv_freq=bank, learned=learned)
    together = rope.rotate(x.transpose(1, 2).flatten(2), GRID)
    error = 1e-5 if learned else 1e-12  # a parameter is float32
    close(together.unflatten(2, (heads, D)).transpose(1, 2), exact, error)

    angle = angles(GRID, bank).unflatten(-1, (heads, -1)).movedim(-2, 0)[None]
    assert angle.shape == (1, heads, 20, D // 2)
    close(rotate(x, angle.cos(), angle.sin()), exact, 1e-12)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_frequencies_of_each_head_for_part_of_a_head(pairing):
    heads, x = 3, sample(2, 3, 7, D)
    bank = sample(heads, 4)  # one axis, half of each head
    angle = angles(torch.arange(7), bank.flatten()).unflatten(-1, (heads, -1))
    angle = angle.movedim(-2, 0)[None]
    got = rotate(x, angle.cos(), angle.sin(), pairing)
    for h in range(heads):
        rope = RotaryEmbedding(D, rotary_dim=8, inv_freq=bank[h], pairing=pairing)
        close(got[:, h], rope.rotate(x[:, h]), 1e-12)


# --------------------------------------------------------- pictures from -1 to 1


@pytest.mark.parametrize("size", [(4, 5), (1, 7), (16, 16)])
def test_dinov3(size):
    code = peer("transformers.models.dinov3_vit.modeling_dinov3_vit")
    config = code.DINOv3ViTConfig(
        hidden_size=128, num_attention_heads=2, patch_size=16, image_size=64
    )
    tables = code.DINOv3ViTRopePositionEmbedding(config).eval()
    picture = torch.zeros(1, 3, *(16 * side for side in size))
    cells = size[0] * size[1]
    q, k = sample(2, 1, 2, cells, 64, dtype=torch.float32).unbind()
    expected = code.apply_rotary_pos_emb(q, k, *tables(picture))

    one = 2 * torch.pi * inverse_frequencies(32, 100.0)
    inv_freq = axial_frequencies(one, one)
    rope = RotaryEmbedding(64, inv_freq=inv_freq, pairing="half")
    got = rope(q, k, pixel_positions(*size, centres=True))
    for ours, theirs in zip(got, expected, strict=True):
        close(ours, theirs, 5e-6)


def test_centres_of_cells_keep_to_the_picture():
    cells = pixel_positions(5, 2, centres=True)
    assert cells.shape == (10, 2) and cells.dtype == torch.float64
    assert cells[:, 0].unique().tolist() == pytest.approx([-0.8, -0.4, 0, 0.4, 0.8])
    assert cells[:, 1].unique().tolist() == [-0.5, 0.5]


def test_log_spaced_frequencies():
    bands = pixel_frequencies(16, 224.0, log_spaced=True)
    ratio = bands[1:] / bands[:-1]
    close(ratio, ratio[:1].expand(7), 1e-12)
    close(bands[[0, -1]] / torch.pi, torch.tensor([1.0, 112.0]), 1e-9)
    close(pixel_frequencies(16, 224.0)[[0, -1]], bands[[0, -1]], 1e-9)


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
    "ValueError: positions must be (seq, axes) ... seq=20 ... axes=2 ... got (20,)": (
        lambda: RotaryEmbedding(D, axes=2).rotate(sample(1, 1, 20, D), torch.arange(20))
    ),
    "ValueError: a position has 2 coordinates ... grid_positions": lambda: (
        RotaryEmbedding(D, axes=2).rotate(sample(1, 1, 20, D))
    ),
    "ValueError: rotary_dim=16 does not divide into pairs for axes=3": lambda: (
        RotaryEmbedding(D, axes=3)
    ),
    "ValueError: inv_freq must be (r/2,) or (axes, r/2) ... 8 ... got (2, 7)": lambda: (
        RotaryEmbedding(D, inv_freq=torch.ones(2, 7))
    ),
    "ValueError: inv_freq must be (r/2,) ... axes=2, got (3, 8)": lambda: (
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
    "ValueError: sections (2, 3, 3) cannot be dealt out in turn": lambda: (
        multimodal_frequencies(torch.ones(8), (2, 3, 3), interleaved=True)
    ),
    "ValueError: an image or video is (time, height, width) ... got (2, 2)": lambda: (
        multimodal_positions([(2, 2)])
    ),
    "ValueError: interval must be finite and not negative, got -1.0": lambda: (
        multimodal_positions([(2, 1, 1, -1.0)])
    ),
    "ValueError: interval must be finite ... nan": lambda: multimodal_positions(
        [(2, 1, 1, float("nan"))]
    ),
    "TypeError: tokens of text must be an int, got list": lambda: multimodal_positions(
        [[1, 2, 2]]
    ),
    "ValueError: each size must be positive, got -1": lambda: multimodal_positions(
        [(1, -1, 2)]
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
