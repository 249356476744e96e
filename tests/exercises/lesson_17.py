"""Seeded answers for lesson 17: misconceptions with their message, another solution."""

SET_UP = "from rope_teach.axes import grid_positions"

LOOKS = "def looks_at(row, column, width):\n    "
SHARE = "def share(trained, size):\n    "
RELATIVE = "def is_relative(angle):\n    "
NEXT = "def text_goes_on_at(start, time, height, width):\n    "
PARTNER = "def partner(A):\n    "
STEPS = """
def is_relative(angle):
    cells = [(r, c) for r in range(8) for c in range(8)]
"""

WRONG = {
    "17.1": [
        (LOOKS + "return row + 2, column + 1", "it counts 13 tokens"),
        (LOOKS + "return divmod(row * 6 + column + 13, 6)", "rows of 6 cells"),
        (LOOKS + "return row + 2, column + 13 - 2 * width", "columns 0 to 6"),
        (LOOKS + "return row * width + column + 13", "In which row and column"),
        (
            LOOKS + "return divmod(row * width + column + 13, width)[::-1]",
            "are swapped",
        ),
        (LOOKS + "return divmod(row * width + column + 14, width)", "You gave (2, 2)"),
        (LOOKS + "return row + 2, (column + 13) % width", "the column is right"),
        (
            LOOKS + "down, right = divmod(row * width + column + 13, width)\n"
            "    return down + 1, right + 1",
            "counted from 1",
        ),
        (LOOKS + "return row, column, width", "not two"),
        (LOOKS + "return row + 13 // width, column + 13 % width", "past either end"),
        (
            LOOKS + "place = row * width + column + 13\n"
            "    return place / width, place % width",
            "whole numbers",
        ),
    ],
    "17.2": [
        (
            SHARE + "return (trained - 2) * (trained - 1) / (size - 2) / (size - 1)",
            "left out the guesses",
        ),
        (SHARE + "return trained ** 2 / size ** 2", "compared all cells"),
        (
            SHARE + "known = (trained / size) ** 2\n    return known + (1 - known) / 8",
            "compared all cells",
        ),
        (
            SHARE + "known = ((trained - 2) / (size - 2)) ** 2\n"
            "    return known + (1 - known) / 8",
            "only 1 to the right",
        ),
        (
            SHARE + "known = (trained - 2) * (trained - 1) / (size - 2) / (size - 1)\n"
            "    return known + 1 / 8",
            "Those that know need none",
        ),
        (SHARE + "return 71", "between 0 and 1"),
        (SHARE + "return 1 / 8", "20 of 30 cells know"),
        (
            SHARE + "known = trained**2 / ((size - 2) * (size - 1))\n"
            "    return known + (1 - known) / 8",
            "every trained cell that asks",
        ),
        (
            SHARE + "asks = min(trained, size - 2) * min(trained, size - 1)\n"
            "    known = asks / ((size - 2) * (size - 1))\n"
            "    return known + (1 - known) / 8",
            "every trained cell that asks",
        ),
    ],
    "17.3": [
        (RELATIVE + "return True", "True to every hand"),
        (RELATIVE + "return angle(0, 0) == 0", "you say False"),
        (
            STEPS + "    return all(math.isclose(angle(r + 1, c) - angle(r, c),\n"
            "                            angle(1, c) - angle(0, c), abs_tol=1e-9)\n"
            "               for r, c in cells)",
            "same rotation after a full turn",
        ),
        (
            STEPS + "    down = [angle(r + 1, c) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - down[0]) > 1 - 1e-9 for s in down)",
            "along the columns it is not",
        ),
        (
            STEPS + "    both = [angle(r + 1, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - both[0]) > 1 - 1e-9 for s in both)",
            "both axes move together",
        ),
        (
            STEPS + "    return all(math.cos(angle(r, c) - angle(r, 0) - angle(0, c))\n"
            "               > 1 - 1e-9 for r, c in cells)",
            "cell (0, 0) cancels out",
        ),
        (
            "def is_relative(angle):\n"
            "    cells = [(r, c) for r in range(7) for c in range(8)]\n"
            "    steps = [angle(r + 2, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - steps[0]) > 1 - 1e-9 for s in steps)",
            "along the offset (2, 1)",
        ),
        (
            STEPS + "    return [angle(r + 1, c) - angle(r, c) for r, c in cells]",
            "for one hand, got 64 values",
        ),
    ],
    "17.4": [
        (NEXT + "return start + time * height * width", "counted every cell"),
        (NEXT + "return start + time + height + width", "added up the axes"),
        (NEXT + "return start + max(time, height, width) - 1", "would land on it"),
        (NEXT + "return max(time, height, width)", "forgot where the image starts"),
        (NEXT + "return start + max(height, width)", "time is the longest axis"),
        (NEXT + "return start + 1", "the largest position is 9"),
    ],
    "17.5": [
        (PARTNER + "return 2 * A", "times A"),
        (PARTNER + "return A.T", "times A"),
        (PARTNER + "return A @ A", "symmetric"),
        (PARTNER + "return torch.zeros_like(A)", "do not turn anything"),
        (PARTNER + "return A.triu()", "not skew"),
        (
            PARTNER + "x = torch.arange(len(A) ** 2).double().sin().reshape(A.shape)\n"
            "    return x - x.T",
            "do not add up",
        ),
        (PARTNER + "return A[0]", "must have shape"),
    ],
}

OTHER = {
    "17.1": """
def looks_at(row, column, width):
    for _ in range(13):
        column += 1
        if column == width:
            row, column = row + 1, 0
    return torch.tensor([row, column])
""",
    "17.2": """
def share(trained, size):
    total = 0
    for r in range(size - 2):
        for c in range(size - 1):
            total += 1 if r + 2 < trained and c + 1 < trained else 0.125
    return torch.tensor(total / (size - 2) / (size - 1))
""",
    "17.3": """
def is_relative(angle):
    turned = torch.tensor([[complex(math.cos(angle(r, c)), math.sin(angle(r, c)))
                            for c in range(9)] for r in range(9)])
    wanted = turned[:, :1] * turned[:1, :] / turned[0, 0]
    steps = [turned[1:, 0] / turned[:-1, 0], turned[0, 1:] / turned[0, :-1]]
    straight = all((step - step[0]).abs().max() < 1e-4 for step in steps)
    return straight and bool((turned - wanted).abs().max() < 1e-4)
""",
    "17.4": """
def text_goes_on_at(start, time, height, width):
    image = start + grid_positions(time, height, width)
    return image.max() + 1
""",
    "17.5": """
def partner(A):
    return torch.linalg.inv(A) - A
""",
}
