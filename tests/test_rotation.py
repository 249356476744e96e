"""The three forms of the rotation, the pairings, and the conversions."""

import functools

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from rope_teach import (
    angles,
    convert_projection,
    cos_sin,
    half_to_interleaved,
    interleaved_to_half,
    inverse_frequencies,
    phases,
    rotate,
    rotate_complex,
    rotate_matrix,
)
from rope_teach.pairing import full_table, half_table
from rope_teach.rotation import rotation_matrix

F64 = torch.float64
PAIRINGS = ("interleaved", "half")
both_pairings = pytest.mark.parametrize("pairing", PAIRINGS)
positions_of_a_model = st.integers(-10_000_000, 10_000_000)


def sample(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)


def turn(x, positions, pairing="interleaved", layout="bhsd", rotary_dim=None):
    """Rotate ``x`` by its positions, with tables in float64."""
    inv_freq = inverse_frequencies(rotary_dim or x.shape[-1])
    return rotate(
        x, *cos_sin(torch.as_tensor(positions), inv_freq, F64), pairing, layout
    )


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------ against numbers


@pytest.mark.parametrize(
    "position, pairing, expected",
    [
        (1, "interleaved", [-1.1426396637, 1.9220755965, 2.9598506679, 4.0297995017]),
        (1, "half", [-1.9841106486, 1.9599006675, 2.4623779024, 4.0197996683]),
        (5, "interleaved", [2.2015107348, -0.3915999037, 2.7963341041, 4.1449385494]),
        (5, "half", [3.1604350095, 1.7975838437, -0.1079377183, 4.0949593801]),
    ],
)
def test_reference_vectors(position, pairing, expected):
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=F64)
    close(turn(x, [position], pairing), torch.tensor([expected], dtype=F64), 1e-10)


@both_pairings
@pytest.mark.parametrize("layout", ["bhsd", "bshd", "sbhd"])
def test_one_more_axis_in_front_changes_nothing(pairing, layout):
    """Batch, heads and seq are as long as each other: none may pass for another."""
    x = sample(3, 5, 5, 5, 8)
    each = [turn(one, range(5), pairing, layout) for one in x]
    close(turn(x, range(5), pairing, layout), torch.stack(each))


@given(
    position=positions_of_a_model,
    base=st.sampled_from([100.0, 1e4, 5e5, 1e6]),
    pairs=st.sampled_from([1, 4, 32, 64]),
)
def test_angles_and_tables_equal_exact_arithmetic(position, base, pairs):
    inv_freq = inverse_frequencies(2 * pairs, base)
    with mpmath.workdps(50):
        exact = [
            position * mpmath.mpf(base) ** (-mpmath.mpf(i) / pairs)
            for i in range(pairs)
        ]
        cosines, sines = [mpmath.cos(a) for a in exact], [mpmath.sin(a) for a in exact]
    place = torch.tensor([position])
    near = {"rel": 0, "abs": 1e-7}
    assert angles(place, inv_freq)[0].tolist() == pytest.approx(
        list(map(float, exact)), **near
    )
    for dtype in (torch.float32, F64):
        cos, sin = cos_sin(place, inv_freq, dtype)
        assert cos.dtype == sin.dtype == dtype
        assert cos[0].tolist() == pytest.approx(list(map(float, cosines)), **near)
        assert sin[0].tolist() == pytest.approx(list(map(float, sines)), **near)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int32, torch.int64, torch.float32]
)
def test_positions_of_any_shape_and_type(dtype):
    positions = torch.arange(6, dtype=dtype).reshape(1, 2, 3)
    angle = angles(positions, torch.tensor([1.0, 0.5]))
    assert angle.shape == (1, 2, 3, 2) and angle.dtype == F64
    close(angle[0, 1, 2], torch.tensor([5.0, 2.5], dtype=F64))


def test_phases_are_cos_plus_i_sin():
    positions, inv_freq = torch.arange(-3, 9), inverse_frequencies(8)
    cos, sin = cos_sin(positions, inv_freq)
    assert torch.equal(
        torch.view_as_real(phases(positions, inv_freq)), torch.stack([cos, sin], -1)
    )
    assert phases(positions, inv_freq, torch.complex128).dtype == torch.complex128


# ------------------------------------------------------------------------- the laws


@st.composite
def rotations(draw):
    """x ``(seq, head_dim)``, its positions, and a rotation of the first features."""
    seq, pairs = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    head_dim = 2 * pairs + draw(st.integers(0, 5))
    pairing = draw(st.sampled_from(PAIRINGS))
    places = st.lists(positions_of_a_model, min_size=seq, max_size=seq)
    x = sample(seq, head_dim, seed=draw(st.integers(0, 1000)))
    return (
        x,
        torch.tensor(draw(places)),
        torch.tensor(draw(places)),
        lambda x, m: turn(x, m, pairing, rotary_dim=2 * pairs),
    )


@given(rotations())
def test_identity_at_zero(drawn):
    x, m, _, turn = drawn
    assert torch.equal(turn(x, 0 * m), x)


@given(rotations())
def test_norm_is_kept(drawn):
    x, m, _, turn = drawn
    close(turn(x, m).norm(dim=-1), x.norm(dim=-1))


@given(rotations())
def test_turns_add_up_and_the_opposite_turn_undoes(drawn):
    x, m, n, turn = drawn
    close(turn(turn(x, m), n), turn(x, m + n), 1e-7)
    close(turn(turn(x, m), -m), x)


@given(rotations())
def test_only_the_difference_counts(drawn):
    x, m, n, turn = drawn
    q, k = x, x.flip(-1)
    close((turn(q, m) * turn(k, n)).sum(-1), (q * turn(k, n - m)).sum(-1), 1e-7)


@given(rotations(), st.floats(-3, 3))
def test_is_linear(drawn, scale):
    x, m, _, turn = drawn
    y = x.flip(0)
    close(turn(scale * x + y, m), scale * turn(x, m) + turn(y, m))


@given(rotations())
def test_backward_is_the_opposite_rotation(drawn):
    x, m, _, turn = drawn
    x.requires_grad_()
    upstream = sample(*x.shape, seed=1)
    (grad,) = torch.autograd.grad(turn(x, m), x, upstream)
    close(grad, turn(upstream, -m))


@given(rotations())
def test_both_pairings_are_one_rotation_in_two_orders(drawn):
    x, m, _, _ = drawn
    r = x.shape[-1] // 2 * 2
    interleaved = turn(x, m, "interleaved", rotary_dim=r)
    half = turn(interleaved_to_half(x, r), m, "half", rotary_dim=r)
    close(interleaved_to_half(interleaved, r), half)
    close(half_to_interleaved(half, r), interleaved)


# ------------------------------------------------------ the three forms are one

SHAPES = {
    "(seq, head_dim)": ((3, 8), (3,)),
    "(heads, seq, head_dim)": ((2, 3, 8), (3,)),
    "(batch, heads, seq, head_dim)": ((2, 4, 3, 8), (3,)),
    "a row of positions for each sequence": ((2, 4, 3, 8), (2, 3)),
    "one position for all": ((2, 4, 3, 8), ()),
    "positions for each head": ((2, 4, 3, 8), (2, 4, 3)),
    "as many heads as tokens": ((3, 3, 3, 8), (3,)),
    "no batch": ((0, 4, 3, 8), (3,)),
    "no tokens": ((2, 4, 0, 8), (0,)),
}


@both_pairings
@pytest.mark.parametrize("rotary_dim", [8, 6, 2])
@pytest.mark.parametrize("case", SHAPES)
def test_real_equals_matrix_equals_complex(case, rotary_dim, pairing):
    shape, places = SHAPES[case]
    x, inv_freq = sample(*shape), inverse_frequencies(rotary_dim)
    positions = torch.randint(
        -50, 50, places, generator=torch.Generator().manual_seed(1)
    )
    cos, sin = cos_sin(positions, inv_freq, F64)
    out = rotate(x, cos, sin, pairing)
    assert out.shape == x.shape and out.dtype == x.dtype
    close(out, rotate_matrix(x, angles(positions, inv_freq), pairing))
    assert torch.equal(out[..., rotary_dim:], x[..., rotary_dim:])
    if pairing == "interleaved":
        close(out, rotate_complex(x, phases(positions, inv_freq, torch.complex128)))


@both_pairings
@pytest.mark.parametrize("positions", [[0, 1, 2], [[0, 1, 2], [7, 8, 9]]])
def test_layouts_differ_by_a_transpose(positions, pairing):
    x = sample(2, 4, 3, 8)
    got = turn(x.transpose(1, 2), positions, pairing, layout="bshd")
    close(got.transpose(1, 2), turn(x, positions, pairing))
    if torch.tensor(positions).ndim == 1:  # the batch axis may be absent
        got = turn(x[0].transpose(0, 1), positions, pairing, layout="bshd")
        close(got.transpose(0, 1), turn(x[0], positions, pairing))


def test_rotation_matrix_is_the_textbook_one():
    m = rotation_matrix(torch.tensor([0.3, 0.7], dtype=F64))
    close(torch.linalg.det(m), torch.tensor(1.0, dtype=F64))
    close(m @ m.T, torch.eye(4, dtype=F64))
    close(m[2:, 2:], rotation_matrix(torch.tensor([0.7], dtype=F64)))
    order = interleaved_to_half(torch.arange(4))
    close(
        m[order][:, order], rotation_matrix(torch.tensor([0.3, 0.7], dtype=F64), "half")
    )


# ------------------------------------------------------------- dtypes and memory


@both_pairings
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    start=positions_of_a_model,
    seed=st.integers(0, 100),
)
def test_result_is_one_rounding_from_float64(pairing, dtype, start, seed):
    """Half a unit in the last place, and what float32 tables and products may lose."""
    x = sample(2, 4, 16, seed=seed, dtype=dtype)
    positions, inv_freq = torch.arange(start, start + 4), inverse_frequencies(16)
    exact = turn(x.double(), positions, pairing)
    got = [rotate(x, *cos_sin(positions, inv_freq), pairing)]
    got.append(rotate_matrix(x, angles(positions, inv_freq), pairing))
    if pairing == "interleaved":
        got.append(rotate_complex(x, phases(positions, inv_freq)))
    finfo = torch.finfo(dtype)
    allowed = finfo.eps / 2 * exact.abs() + finfo.smallest_normal * finfo.eps
    allowed += 2**-22 * x.double().norm(dim=-1, keepdim=True)
    for out in got:
        assert out.dtype == dtype
        assert ((out.double() - exact).abs() <= allowed).all()


@both_pairings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_tables_do_not_round_the_products(pairing, dtype):
    x = sample(2, 3, 8, dtype=dtype)
    cos, sin = cos_sin(torch.arange(3), inverse_frequencies(8), dtype)
    out = rotate(x, cos, sin, pairing)
    assert torch.equal(out, rotate(x, cos.float(), sin.float(), pairing))


VIEWS = {
    "transposed": lambda: sample(2, 3, 4, 8).transpose(1, 2),
    "expanded": lambda: sample(2, 1, 3, 8).expand(2, 4, 3, 8),
    "from an odd offset": lambda: sample(2, 4, 3, 10)[..., 1:9],
    "with odd strides": lambda: sample(2, 4, 3, 9)[..., :8],
    "one token with odd strides": lambda: sample(1, 1, 1, 9)[..., :8],
    "every other feature": lambda: sample(2, 4, 3, 16)[..., ::2],
    "features first": lambda: sample(8, 2, 4, 3).movedim(0, -1),
}


@both_pairings
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("grad", [False, True])
def test_any_view_of_memory_is_rotated_and_left_as_it_was(view, pairing, grad):
    x = VIEWS[view]()
    before = x.clone(memory_format=torch.contiguous_format)
    x.requires_grad_(grad)
    positions = torch.arange(x.shape[-2])
    out = turn(x, positions, pairing)
    assert torch.equal(x, before)
    close(out, turn(before, positions, pairing))
    if pairing == "interleaved":
        turned = rotate_complex(
            x, phases(positions, inverse_frequencies(8), torch.complex128)
        )
        close(turned, out)


# ------------------------------------------------------------------ derivatives


@both_pairings
@pytest.mark.parametrize("rotary_dim", [6, 4])
def test_gradcheck_of_the_real_form(pairing, rotary_dim):
    x = sample(2, 3, 6).requires_grad_()
    tables = cos_sin(torch.arange(3), inverse_frequencies(rotary_dim), F64)
    for learned in (False, True):
        inputs = (x, *(table.clone().requires_grad_(learned) for table in tables))
        call = functools.partial(rotate, pairing=pairing)
        assert gradcheck(call, inputs, check_forward_ad=True)
        assert gradgradcheck(call, inputs)


def test_gradcheck_of_the_other_forms():
    x = sample(2, 3, 6).requires_grad_()
    angle = angles(torch.arange(3), inverse_frequencies(4)).requires_grad_()
    turn = torch.polar(torch.ones_like(angle), angle).detach().requires_grad_()
    for form, inputs in ((rotate_matrix, (x, angle)), (rotate_complex, (x, turn))):
        assert gradcheck(form, inputs)
        assert gradgradcheck(form, inputs)


@both_pairings
def test_function_transforms(pairing):
    x = sample(4, 3, 8)
    cos, sin = cos_sin(torch.arange(3), inverse_frequencies(8), F64)

    def call(x, cos=cos, sin=sin):
        return rotate(x, cos, sin, pairing)

    def energy(x):  # equals |x| squared
        return call(x).pow(2).sum()

    close(torch.vmap(call)(x), call(x))
    close(
        torch.vmap(call, in_dims=2, out_dims=2)(x.movedim(0, 2)), call(x).movedim(0, 2)
    )
    each = torch.vmap(call, in_dims=(None, 0, 0))(
        x[0], cos.expand(2, 3, 4), sin.expand(2, 3, 4)
    )
    close(each, call(x[0]).expand(2, 3, 8))
    close(torch.func.grad(energy)(x), 2 * x)
    close(torch.vmap(torch.func.grad(energy))(x), 2 * x)
    close(torch.func.jvp(call, (x,), (x,))[1], call(x))
    hessian = torch.func.hessian(energy)(x[0]).reshape(24, 24)
    close(hessian, 2 * torch.eye(24, dtype=F64))


# ------------------------------------------------------------------ conversions


@given(pairs=st.integers(1, 8), rest=st.integers(0, 4))
def test_reordering_there_and_back(pairs, rest):
    x = torch.arange(2 * pairs + rest)
    half = interleaved_to_half(x, 2 * pairs)
    assert half[:pairs].tolist() == list(range(0, 2 * pairs, 2))
    assert torch.equal(half[2 * pairs :], x[2 * pairs :])
    assert torch.equal(half_to_interleaved(half, 2 * pairs), x)


@both_pairings
def test_full_and_half_tables(pairing):
    cos, _ = cos_sin(torch.arange(4), inverse_frequencies(8))
    full = full_table(cos, pairing)
    assert full.shape == (4, 8)
    assert torch.equal(half_table(full, pairing), cos)
    order = [0, 0, 1, 1, 2, 2, 3, 3] if pairing == "interleaved" else [0, 1, 2, 3] * 2
    assert torch.equal(full, cos[:, order])


def scores(q, k, pairing, rotary_dim):
    """Logits of grouped-query attention: the heads of q share those of k."""
    q, k = (turn(x, torch.arange(5), pairing, rotary_dim=rotary_dim) for x in (q, k))
    return q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).transpose(-1, -2)


@pytest.mark.parametrize("source, target", [PAIRINGS, PAIRINGS[::-1]])
@pytest.mark.parametrize("rotary_dim", [8, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_converted_projections_keep_the_logits(source, target, rotary_dim, bias):
    tokens, heads, kv_heads, head_dim = sample(5, 12, seed=3), 4, 2, 8

    def project(count, convert):
        parts = [
            sample(count * head_dim, 12, seed=count),
            sample(count * head_dim, seed=9),
        ]
        if convert:
            parts = [
                convert_projection(p, count, source, target, rotary_dim) for p in parts
            ]
        out = tokens @ parts[0].T + (parts[1] if bias else 0)
        return out.unflatten(-1, (count, head_dim)).transpose(0, 1)

    before = scores(project(heads, False), project(kv_heads, False), source, rotary_dim)
    after = scores(project(heads, True), project(kv_heads, True), target, rotary_dim)
    close(after, before)
    only_q = scores(project(heads, True), project(kv_heads, False), target, rotary_dim)
    assert (only_q - before).abs().max() > 0.1


def test_convert_projection_is_the_reshape_of_published_scripts():
    heads, head_dim, columns = 4, 6, 5
    weight = sample(heads * head_dim, columns)
    expected = (
        weight.view(heads, head_dim // 2, 2, columns)
        .transpose(1, 2)
        .reshape(-1, columns)
    )
    got = convert_projection(weight, heads, "interleaved", "half")
    assert torch.equal(got, expected)
    assert torch.equal(convert_projection(got, heads, "half", "interleaved"), weight)
    same = convert_projection(weight, heads, "half", "half")
    assert torch.equal(same, weight) and same.data_ptr() != weight.data_ptr()


# ------------------------------------------------------------------- bad input

X = torch.zeros(2, 4, 3, 8)
COS, SIN = cos_sin(torch.arange(3), inverse_frequencies(8))
ANGLE = angles(torch.arange(3), inverse_frequencies(8))
WIDE = full_table(COS, "half")
LONG = cos_sin(torch.arange(4), inverse_frequencies(8))
BATCH = [table.expand(3, 3, 4) for table in (COS, SIN)]
ONE_TOKEN = [table[:1].expand(2, 1, 4) for table in (COS, SIN)]
FAR = torch.zeros(3, 4, device="meta")
BF16 = torch.arange(3).bfloat16()
W = torch.zeros(8, 3)

BAD = {
    "TypeError: x must ... int64": lambda: rotate(X.long(), COS, SIN),
    "TypeError: x must ... complex64": lambda: rotate(X.cfloat(), COS, SIN),
    "TypeError: x must ... list": lambda: rotate([1.0], COS, SIN),
    "ValueError: feature axis": lambda: rotate(X[0, 0, 0, 0], COS, SIN),
    "TypeError: cos must ... list": lambda: rotate(X, [1.0], SIN),
    "TypeError: cos ... int64": lambda: rotate(X, COS.long(), SIN.long()),
    "ValueError: cos and sin ... (3, 4) ... (2, 4)": lambda: rotate(X, COS, SIN[:2]),
    "ValueError: one dtype ... float64": lambda: rotate(X, COS.double(), SIN),
    "ValueError: pairing ... 'half' ... 'neox'": lambda: rotate(X, COS, SIN, "neox"),
    "ValueError: layout ... 'sbhd'": lambda: rotate(X, COS, SIN, layout="sbhd"),
    "ValueError: 8 wide ... head_dim 8 ... half_table": lambda: rotate(X, WIDE, WIDE),
    "ValueError: 3 positions ... has 4 ... layout='bhsd'": lambda: rotate(
        X, COS, SIN, layout="bshd"
    ),
    "ValueError: 4 positions ... (2, 4, 3, 8) ... has 3": lambda: rotate(X, *LONG),
    "ValueError: 1 positions ... has 3": lambda: rotate(X, COS[:1], SIN[:1]),
    "ValueError: 1 positions ... (2, 4, 3, 8) ... has 3": lambda: rotate(X, *ONE_TOKEN),
    "ValueError: batch 3 ... batch 2": lambda: rotate(X, *BATCH),
    "ValueError: (3, 3, 4) ... (4, 3, 8) ... needs (seq, r/2)": lambda: rotate(
        X[0], *BATCH
    ),
    "ValueError: (2, 2, 3, 4) ... align ... (2, 4, 3, 8)": lambda: rotate(
        X, COS.expand(2, 2, 3, 4), SIN.expand(2, 2, 3, 4)
    ),
    "ValueError: table is on meta ... x is on cpu": lambda: rotate(X, FAR, FAR),
    "TypeError: phases must be a complex ... float32": lambda: rotate_complex(X, COS),
    "TypeError: phases ... list": lambda: rotate_complex(X, [1j]),
    "ValueError: 4 positions ... has 3": lambda: rotate_complex(
        X, phases(torch.arange(4), inverse_frequencies(8))
    ),
    "TypeError: angles ... int64": lambda: rotate_matrix(X, ANGLE.long()),
    "ValueError: pairing ... 'both'": lambda: rotation_matrix(ANGLE, "both"),
    "ValueError: 3 positions ... has 4": lambda: rotate_matrix(X, ANGLE, layout="bshd"),
    "TypeError: positions ... list": lambda: angles([0, 1], COS[0]),
    "TypeError: positions ... bfloat16 ... 256": lambda: angles(BF16, COS[0]),
    "TypeError: positions ... float16 ... 2048": lambda: cos_sin(BF16.half(), COS[0]),
    "TypeError: positions ... complex64": lambda: angles(BF16.cfloat(), COS[0]),
    "TypeError: positions ... bool": lambda: angles(BF16.bool(), COS[0]),
    "TypeError: inv_freq ... list": lambda: angles(torch.arange(3), [1.0]),
    "ValueError: 'interleaved' ... other pairing": lambda: half_table(
        full_table(COS, "half"), "interleaved"
    ),
    "ValueError: 'half' ... other pairing": lambda: half_table(
        full_table(COS, "interleaved"), "half"
    ),
    "ValueError: width ... even ... 3": lambda: half_table(COS[:, :3], "half"),
    "ValueError: pairing ... 'neox'": lambda: full_table(COS, "neox"),
    "ValueError: rotary_dim ... even ... 3": lambda: interleaved_to_half(X, 3),
    "ValueError: rotary_dim ... 8 ... 10": lambda: half_to_interleaved(X, 10),
    "ValueError: source ... 'gptj'": lambda: convert_projection(W, 2, "gptj", "half"),
    "ValueError: target ... 'gptj'": lambda: convert_projection(W, 2, "half", "gptj"),
    "ValueError: weight ... (4, 3, 8)": lambda: convert_projection(X[0], 2, *PAIRINGS),
    "ValueError: 8 rows ... 3 heads ... kv_heads": lambda: convert_projection(
        W, 3, *PAIRINGS
    ),
    "ValueError: heads ... positive ... 0": lambda: convert_projection(W, 0, *PAIRINGS),
    "TypeError: heads ... int ... 2.0": lambda: convert_projection(W, 2.0, *PAIRINGS),
    "ValueError: even ... 1": lambda: convert_projection(W, 8, *PAIRINGS),
    "ValueError: rotary_dim ... 4 ... 6": lambda: convert_projection(
        W, 2, *PAIRINGS, 6
    ),
    "ValueError: rotary_dim ... 6": lambda: convert_projection(W, 2, "half", "half", 6),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, refuses):
    refuses(BAD[message], message)
