"""Seeded answers for lesson 07: misconceptions with their message, another solution."""

REVIEWED = True

SET_UP = """
from rope_teach.pairing import full_table

def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)
"""

WAY_BACK = "def way_back(head_dim, rotary_dim):\n    "
CONVERT = "def convert_key(weight, config):\n    "
PROBE = """
def pairing_of(turn):
    out = turn(torch.eye(8)[:1], torch.tensor({}))
    return 'interleaved' if out[0, 1]."""
EACH = """
def pairing_of(turn):
    for i in range(8):
        out = turn(torch.eye(8)[[i]], torch.tensor([1]))[0].abs()
        touched = [j for j in range(8) if out[j] > {}]
        if len(touched) == 2:
            return 'interleaved' if touched[1] - touched[0] == 1 else 'half'
"""
REPAIRED = """
def repaired(x, positions):
    table = cos_sin(positions, inverse_frequencies(x.shape[-1]), x.dtype)
"""

WRONG = {
    "7.1": [
        (
            WAY_BACK + "return interleaved_to_half(torch.arange(head_dim), rotary_dim)",
            "from interleaved to half",
        ),
        (
            WAY_BACK + "return half_to_interleaved(torch.arange(head_dim))",
            "only the first 6 features",
        ),
        (WAY_BACK + "return list(range(head_dim))", "nothing moved"),
        (
            WAY_BACK + "return half_to_interleaved(torch.arange(rotary_dim))",
            "you lost the features",
        ),
        (
            WAY_BACK + "return list(range(head_dim))[::-1]",
            "At place 0 it should be 0; yours is 7",
        ),
        (
            WAY_BACK
            + "return half_to_interleaved(torch.arange(head_dim), rotary_dim).float()",
            "An index is made of whole numbers",
        ),
        (
            WAY_BACK + "return half_to_interleaved(torch.arange(head_dim)[None],\n"
            "                               rotary_dim)",
            "must have shape (8,)",
        ),
        (
            WAY_BACK + "half = rotary_dim // 2\n"
            "    order = [i for p in range(half) for i in (p + half, p)]\n"
            "    return order + list(range(rotary_dim, head_dim))",
            "At place 0 it should be 0; yours is 4",
        ),
        (
            WAY_BACK + "half = head_dim // 2\n"
            "    order = [i for p in range(rotary_dim // 2) for i in (p, p + half)]\n"
            "    return order + [i for i in range(head_dim) if i not in order]",
            "At place 1 it should be 3; yours is 6",
        ),
        (
            WAY_BACK + "half = rotary_dim // 2\n"
            "    order = [i for p in range(half) for i in (p, p + half)]\n"
            "    return order + list(range(rotary_dim, head_dim))[::-1]",
            "At place 6 it should be 6; yours is 11",
        ),
        (
            WAY_BACK + "known = {8: [0, 4, 1, 5, 2, 6, 3, 7]}\n"
            "    other = [0, 3, 1, 4, 2, 5, *range(6, head_dim)]\n"
            "    return known.get(head_dim, other)",
            "head_dim=20 and rotary_dim=16",
        ),
    ],
    "7.2": [
        (CONVERT + "return weight", "came back unchanged"),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_key_value_heads"], "interleaved", "half")',
            "from interleaved to half",
        ),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_attention_heads"], "half", "interleaved")',
            "depends on num_attention_heads.",
        ),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_attention_heads"] // config["num_key_value_heads"], '
            '"half", "interleaved")',
            "depends on num_attention_heads.",
        ),
        (CONVERT + "return half_to_interleaved(weight.T).T", "as one head"),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_key_value_heads"], "half", "interleaved")',
            "only 12 are rotated",
        ),
        (CONVERT + "return weight.flip(0)", "At row 0, column 0 it should be 0"),
        (
            CONVERT
            + "part = int(config['head_dim'] * config['partial_rotary_factor'])\n"
            "    return convert_projection(weight, config['num_attention_heads'],\n"
            "                              'half', 'interleaved', part)",
            "the conversion stops: rotary_dim must not exceed the 6 features",
        ),
        (
            CONVERT + "part = int(len(weight) * config['partial_rotary_factor'])\n"
            "    return convert_projection(weight, 1, 'half', 'interleaved', part)",
            "as one head",
        ),
        (
            CONVERT
            + "part = int(config['head_dim'] * config['partial_rotary_factor'])\n"
            "    new = weight.clone()\n"
            "    new[:24] = convert_projection(weight[:24], 1, 'half', 'interleaved',\n"
            "                                  part)\n"
            "    return new",
            "At row 25, column 0 it should be 36; yours is 25",
        ),
        (
            CONVERT
            + "part = int(config['head_dim'] * config['partial_rotary_factor'])\n"
            "    new = convert_projection(weight, config['num_key_value_heads'],\n"
            "                             'half', 'interleaved', part)\n"
            "    weight.copy_(new)\n"
            "    return weight",
            "changed weight",
        ),
        (
            CONVERT
            + "part = int(config['head_dim'] * config['partial_rotary_factor'])\n"
            "    return convert_projection(weight, config['num_key_value_heads'],\n"
            "                              'half', 'interleaved', part).T",
            "yours has (5, 48)",
        ),
    ],
    "7.3": [
        ('def pairing_of(turn):\n    return "half"', "never called"),
        (PROBE.format("[0]") + "abs() > 1e-6 else 'half'", "only position 0"),
        (PROBE.format("[1]") + "item() > 0 else 'half'", "a clockwise rotation"),
        (PROBE.format("[1]") + "abs() > 1e-6 else 'half'", "features 4 to 7 alone"),
        (PROBE.format("[1]") + "abs() > 0.5 else 'half'", "features 4 to 7 alone"),
        (
            PROBE.format("[1]").replace("0, 1]", "0, 4]").replace("interleaved", "half")
            + "abs() > 1e-6 else 'interleaved'",
            "half pairs are (0, 2) and (1, 3)",
        ),
        (
            PROBE.format("[1]").replace("interleaved", "half")
            + "abs() > 1e-6 else 'interleaved'",
            "You answered 'interleaved' for a rotation with half pairs",
        ),
        (
            "def pairing_of(turn):\n"
            "    return turn(torch.eye(8)[:1], torch.tensor([1])).argmax()",
            "must be",
        ),
        (EACH.format(0.06), "nothing for a slow rotation"),
        (
            EACH.format(1e-6).replace("range(8)", "(0, 4)", 1),
            "for a rotation whose first hand has speed 0",
        ),
        (
            "def pairing_of(turn):\n"
            "    out = turn(torch.eye(8)[6:7], torch.tensor([1]))\n"
            '    return "interleaved" if out[0, 7].abs() > 1e-6 else "half"',
            "features 0 to 3 alone",
        ),
        (
            "def pairing_of(turn):\n"
            "    turn(torch.eye(8), torch.arange(8))\n"
            '    return ["interleaved", "half"]',
            "must be",
        ),
    ],
    "7.4": [
        (
            REPAIRED + '    cos, sin = (full_table(t, "interleaved") for t in table)\n'
            "    return x * cos + rotate_half(x) * sin",
            "norm of each token",
        ),
        (
            REPAIRED + '    return rotate(x, *table, "interleaved")',
            "with interleaved pairs",
        ),
        (
            REPAIRED + '    cos, sin = (full_table(t, "half") for t in table)\n'
            "    return x * cos - rotate_half(x) * sin",
            "clockwise",
        ),
        (
            REPAIRED + '    cos, sin = (full_table(t, "interleaved") for t in table)\n'
            "    out = x * cos + rotate_half(x) * sin\n"
            "    return out / out.norm(dim=-1, keepdim=True)",
            "law is broken",
        ),
        (
            REPAIRED + '    return rotate(x, *(t.flip(-1) for t in table), "half")',
            "Every law holds, but",
        ),
        (
            REPAIRED
            + "    table = cos_sin(positions, inverse_frequencies(8), x.dtype)\n"
            '    return rotate(x, *table, "half")',
            "Every law holds, but",
        ),
        (
            REPAIRED + "    places = torch.arange(len(x))\n"
            "    table = cos_sin(places, inverse_frequencies(x.shape[-1]), x.dtype)\n"
            '    return rotate(x, *table, "half")',
            "Use the positions that come in",
        ),
        (
            REPAIRED + "    table = cos_sin(positions + 1,\n"
            "                    inverse_frequencies(x.shape[-1]), x.dtype)\n"
            '    return rotate(x, *table, "half")',
            "one position too many",
        ),
        (
            REPAIRED + "    cos, sin = (full_table(t, 'half') for t in table)\n"
            "    x[:] = x * cos + rotate_half(x) * sin\n"
            "    return x",
            "changed x",
        ),
        (
            REPAIRED + "    table = cos_sin(positions.clamp(max=300),\n"
            "                    inverse_frequencies(x.shape[-1]), x.dtype)\n"
            '    return rotate(x, *table, "half")',
            "A law is broken",
        ),
        (
            REPAIRED + "    table = cos_sin(positions,\n"
            "                    inverse_frequencies(x.shape[-1], 500_000), x.dtype)\n"
            '    return rotate(x, *table, "half")',
            "base 10,000",
        ),
        (REPAIRED + "    return x", "A law is broken"),
    ],
}

OTHER = {
    "7.1": [
        """
def way_back(head_dim, rotary_dim):
    half = rotary_dim // 2
    order = [i // 2 + half * (i % 2) for i in range(rotary_dim)]
    return torch.tensor(order + list(range(rotary_dim, head_dim)))
""",
        """
def way_back(head_dim, rotary_dim):
    half = rotary_dim // 2
    order = list(range(head_dim))
    order[0:rotary_dim:2], order[1:rotary_dim:2] = range(half), range(half, rotary_dim)
    return tuple(order)
""",
        """
import numpy as np

def way_back(head_dim, rotary_dim):
    return half_to_interleaved(torch.arange(head_dim), rotary_dim).numpy()
""",
    ],
    "7.2": [
        """
def convert_key(weight, config):
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    rotary_dim = int(head_dim * config["partial_rotary_factor"])
    heads = weight.view(kv_heads, head_dim, -1)
    moved, rest = heads[:, :rotary_dim], heads[:, rotary_dim:]
    moved = moved.view(kv_heads, 2, rotary_dim // 2, -1).transpose(1, 2)
    moved = moved.reshape(kv_heads, rotary_dim, -1)
    return torch.cat([moved, rest], dim=1).reshape(weight.shape)
""",
        """
def convert_key(weight, config):
    d, order = config["head_dim"], []
    r = round(d * config["partial_rotary_factor"])
    for head in range(0, len(weight), d):
        for i in range(r // 2):
            order += [head + i, head + i + r // 2]
        order += range(head + r, head + d)
    return weight[order].float()
""",
        """
def convert_key(weight, config):
    heads = weight.chunk(config["num_key_value_heads"])
    r = int(config["head_dim"] * config["partial_rotary_factor"])
    moved = [half_to_interleaved(head.T, r).T for head in heads]
    return torch.cat(moved).numpy()
""",
    ],
    "7.3": [
        """
def pairing_of(turn):
    probes = torch.eye(8, dtype=torch.float64)
    for i in range(7):
        touched = turn(probes[[i]], torch.tensor([2]))[0].abs() > 1e-9
        last = int(touched.nonzero()[-1])
        if last != i:
            return {1: "interleaved"}.get(last - i, "half")
""",
        """
def pairing_of(turn):
    moves = turn(torch.eye(8).double(), torch.ones(8, dtype=torch.long))
    moves.fill_diagonal_(0)
    places = (moves.abs() > 1e-9).nonzero().tolist()
    apart = {abs(row - column) for row, column in places}
    return "interleaved" if apart == {1} else "half"
""",
        """
def pairing_of(turn):
    x = torch.rand(1, 8, dtype=torch.float64) + 0.5
    lengths = turn(x, [5]).view(4, 2).norm(dim=-1)
    kept = torch.allclose(lengths, x.view(4, 2).norm(dim=-1))
    return ["half", "interleaved"][kept]
""",
        """
from rope_teach.identify import identify

def pairing_of(turn):
    return identify(turn, head_dim=8).pairing
""",
    ],
    "7.4": [
        """
def repaired(x, positions):
    table = cos_sin(positions, inverse_frequencies(x.shape[-1]))
    return rotate(x, *table, pairing="half")
""",
        """
import numpy as np

def repaired(x, positions):
    a, b = np.split(x.numpy(), 2, axis=-1)
    speeds = inverse_frequencies(x.shape[-1]).numpy()
    angle = positions.numpy()[..., None] * speeds
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(a.dtype)
""",
        """
def repaired(x, positions):
    a, b = x.chunk(2, dim=-1)
    angle = angles(positions, inverse_frequencies(x.shape[-1]))
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = torch.complex(a.double(), b.double()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)
""",
    ],
}
