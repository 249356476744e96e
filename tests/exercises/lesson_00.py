"""Seeded answers for lesson 00: misconceptions with their message, another solution."""

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
    ],
    "0.2": [
        ("turned = two_hands", "have not moved"),
        ("turned = 5 * two_hands", "hands longer"),
        ("turned = two_hands + 5", "You added 5"),
        ("turned = rope(two_hands, -5)", "at position -5"),
        ("turned = rope(two_hands, 4)", "at position 4"),
        ("turned = rope(two_hands[:2], 5)", "has shape"),
        ("turned = rope(two_hands, 5, base=100)", "the pairs are"),
    ],
    "0.3": [
        ('same = "ABC"', "keeps turning"),
        ('same = "BCD"', "stayed behind"),
        ('same = "C"', "the rule of this lesson"),
        ('same = "B"', "to a length"),
        ("same = 2 * [True]", "Write the letters"),
    ],
}

OTHER = {
    "0.1": "distance = torch.tensor(3)",
    "0.2": "turned = rope(rope(two_hands, 2), 3)",
    "0.3": 'same = ["c", "b"]',
}
