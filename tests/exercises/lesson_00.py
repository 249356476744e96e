"""Seeded answers for lesson 00: misconceptions with their message, another solution."""

REVIEWED = True

SET_UP = """
def rope(x, position, base=10_000.0):
    angle = position * inverse_frequencies(len(x), base)
    a, b = x[0::2], x[1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten()

two_hands = torch.tensor([1.0, 0.0, 1.0, 0.0])
"""

WRONG = {
    "0.1": [
        ("distance = 2", "words between"),
        ("distance = 1 + 4", "is the sum"),
        ("distance = 4", "position of the second dog"),
        ("distance = 1 - 4", "the wrong direction"),
        ("distance = 7", "take you to position 8"),
        ('distance = "three"', "quotation marks"),
        ("distance = True", "Expected a number, got True"),
        ("distance = [1, 4]", "Expected one number, got 2"),
        ("distance = 3.5", "to position 4.5"),
        ("distance = 0", "the same word in two places"),
        (
            't = "The dog chased another dog"\n'
            'distance = t.rfind("dog") - t.find("dog")',
            "19 steps take you",
        ),
        ("distance = torch.tensor(-3)", "the wrong direction"),
    ],
    "0.2": [
        ("turned = two_hands", "have not moved"),
        ("turned = 5 * two_hands", "hands longer"),
        ("turned = two_hands + 5", "You added 5"),
        ("turned = rope(two_hands, -5)", "at position -5"),
        ("turned = rope(two_hands, 4)", "at position 4"),
        ("turned = rope(two_hands[:2], 5)", "has shape"),
        ("turned = rope(two_hands, 5, base=100)", "the pairs are"),
        ("turned = rope(two_hands, 2.5)", "half the way"),
        (
            "turned = torch.cat([rope(two_hands, 5)[:2], two_hands[2:]])",
            "slow one has not",
        ),
        (
            "turned = torch.cat([two_hands[:2], rope(two_hands, 5)[2:]])",
            "fast one has not",
        ),
        ("turned = rope(two_hands, 5)[[1, 0, 3, 2]]", "(sin, cos)"),
        ("turned = rope(two_hands, 5)[[0, 2, 1, 3]]", "All cosines come first"),
        ("turned = rope(two_hands, math.radians(5))", "in radians"),
        ("turned = rope(two_hands, 5).abs()", "it should be -0.959; yours is 0.959"),
        ("turned = rope(two_hands, 5).clamp(min=0)", "place 1"),
        ("turned = rope(two_hands, 5)[None]", "has shape (1, 4)"),
        ("turned = [0.28, -0.96, 1.0, 0.05]", "it should be 0.284; yours is 0.28"),
        ("turned = rope", "Expected numbers, got function"),
    ],
    "0.3": [
        ('same = "ABC"', "keeps turning"),
        ('same = "BCD"', "stayed behind"),
        ('same = "C"', "the rule of this lesson"),
        ('same = "B"', "to a length"),
        ("same = 2 * [True]", "Write the letters"),
        ('same = "ABCD"', "keeps turning"),
        ('same = "D"', "stayed behind"),
        ('same = ["b"]', "to a length"),
        ("same = 3", "Write the letters"),
        ('same = "E"', "Write the letters"),
        ('same = ""', "Write the letters"),
        ('same = "rope(q, m).norm()"', "Write the letters"),
    ],
}

OTHER = {
    "0.1": [
        "distance = torch.tensor(3)",
        'words = "The dog chased another dog".split()\n'
        'distance = len(words) - 1 - words.index("dog")',
        "from fractions import Fraction\ndistance = Fraction(3)",
    ],
    "0.2": [
        "turned = rope(rope(two_hands, 2), 3)",
        "turned = [math.cos(5), math.sin(5), math.cos(0.05), math.sin(0.05)]",
        "turned = rope(two_hands.half(), 5).half()",
        "turned = rope(two_hands, 5).bfloat16()",
        "import numpy as np\n"
        "z = np.exp(1j * 5 * np.array([1, 0.01]))\n"
        "turned = np.stack([z.real, z.imag], -1).ravel()",
    ],
    "0.3": [
        'same = ["c", "b"]',
        'same = "B and C"',
        'same = {"B", "C"}',
        'same = "c, b"',
    ],
}
