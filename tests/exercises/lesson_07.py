"""Seeded answers for lesson 07: misconceptions with their message, another solution."""

SET_UP = """
from rope_teach.pairing import full_table

def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)
"""

WAY_BACK = "def way_back(head_dim, rotary_dim):\n    "
CONVERT = "def convert_key(weight, config):\n    "
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
        (WAY_BACK + "return list(range(head_dim))[::-1]", "the order is"),
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
            "one for each query head",
        ),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_attention_heads"] // config["num_key_value_heads"], '
            '"half", "interleaved")',
            "divided the two head counts",
        ),
        (CONVERT + "return half_to_interleaved(weight.T).T", "as one head"),
        (
            CONVERT + "return convert_projection(weight, "
            'config["num_key_value_heads"], "half", "interleaved")',
            "only 12 are rotated",
        ),
        (CONVERT + "return weight.flip(0)", "the first eight rows"),
    ],
    "7.3": [
        ('def pairing_of(turn):\n    return "half"', "never called"),
        (
            "def pairing_of(turn):\n"
            "    out = turn(torch.eye(8)[:1], torch.tensor([0]))\n"
            '    return "interleaved" if out[0, 1].abs() > 1e-6 else "half"',
            "only position 0",
        ),
        (
            "def pairing_of(turn):\n"
            "    out = turn(torch.eye(8)[:1], torch.tensor([1]))\n"
            '    return "interleaved" if out[0, 1] > 0 else "half"',
            "look at its place",
        ),
        (
            "def pairing_of(turn):\n"
            "    out = turn(torch.eye(8)[:1], torch.tensor([1]))\n"
            '    return "half" if out[0, 4].abs() > 1e-6 else "interleaved"',
            "not (0, 4)",
        ),
        (
            "def pairing_of(turn):\n"
            "    out = turn(torch.eye(8)[:1], torch.tensor([1]))\n"
            '    return "half" if out[0, 1].abs() > 1e-6 else "interleaved"',
            "gets the sine",
        ),
        (
            "def pairing_of(turn):\n"
            "    return turn(torch.eye(8)[:1], torch.tensor([1])).argmax()",
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
    ],
}

OTHER = {
    "7.1": """
def way_back(head_dim, rotary_dim):
    half = rotary_dim // 2
    order = [i // 2 + half * (i % 2) for i in range(rotary_dim)]
    return torch.tensor(order + list(range(rotary_dim, head_dim)))
""",
    "7.2": """
def convert_key(weight, config):
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    rotary_dim = int(head_dim * config["partial_rotary_factor"])
    heads = weight.view(kv_heads, head_dim, -1)
    moved, rest = heads[:, :rotary_dim], heads[:, rotary_dim:]
    moved = moved.view(kv_heads, 2, rotary_dim // 2, -1).transpose(1, 2)
    moved = moved.reshape(kv_heads, rotary_dim, -1)
    return torch.cat([moved, rest], dim=1).reshape(weight.shape)
""",
    "7.3": """
def pairing_of(turn):
    probe = torch.zeros(1, 8, dtype=torch.float64)
    probe[0, 0] = 1
    touched = turn(probe, torch.tensor([2]))[0].abs() > 1e-9
    return {1: "interleaved"}.get(int(touched.nonzero()[-1]), "half")
""",
    "7.4": """
def repaired(x, positions):
    table = cos_sin(positions, inverse_frequencies(x.shape[-1]))
    return rotate(x, *table, pairing="half")
""",
}
