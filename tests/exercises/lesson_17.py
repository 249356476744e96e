"""Seeded answers for lesson 17: misconceptions with their message, other solutions."""

REVIEWED = True

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
        (
            LOOKS + "row, column = row + 2, column + 13 - 2 * width\n"
            "    if column < 0:\n"
            "        return row - 1, column + width\n"
            "    return row + column // width, column % width",
            "columns 0 to 39",
        ),
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
        (SHARE + "return {7: 0.708, 12: 0.284}.get(size, 1.0)", "20 of 30 cells know"),
        (
            SHARE + "known = (trained - 1) * (trained - 2) / (size - 1) / (size - 2)\n"
            "    return known + (1 - known) / 10",
            "the others guess",
        ),
        (
            SHARE + "known = min((trained - 2) / (size - 2), 0.6)\n"
            "    return known + (1 - known) / 8",
            "the others guess",
        ),
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
        (
            STEPS.replace("range(8)", "range(7)")
            + "    return all(math.cos(step - step_0) > 1 - 1e-9\n"
            "               for r, c in cells for step, step_0 in (\n"
            "        (angle(r + 1, c) - angle(r, c), angle(1, 0) - angle(0, 0)),\n"
            "        (angle(r, c + 1) - angle(r, c), angle(0, 1) - angle(0, 0))))",
            "0.5 more at (8, 2)",
        ),
        (
            STEPS + "    return all(math.cos(step - step_0) > 1 - 1e-9\n"
            "               for r, c in cells for step, step_0 in (\n"
            "        (angle(r + 1, c) - angle(r, c), angle(1, 0) - angle(0, 0)),\n"
            "        (angle(r, c + 1) - angle(r, c), angle(0, 1) - angle(0, 0))))",
            "0.5 more at (8, 8)",
        ),
        (RELATIVE + "return True", "True to every hand"),
        (RELATIVE + "return angle(0, 0) == 0", "you say False"),
        (
            STEPS + "    return all(math.isclose(angle(r + 1, c) - angle(r, c),\n"
            "                            angle(1, c) - angle(0, c), abs_tol=1e-9)\n"
            "               for r, c in cells)",
            "differ by whole turns",
        ),
        (
            STEPS + "    down = [angle(r + 1, c) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - down[0]) > 1 - 1e-9 for s in down)",
            "A step to the right turns it by",
        ),
        (
            STEPS + "    both = [angle(r + 1, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - both[0]) > 1 - 1e-9 for s in both)",
            "you say True. A step",
        ),
        (
            STEPS + "    return all(math.cos(angle(r, c) - angle(r, 0) - angle(0, c))\n"
            "               > 1 - 1e-9 for r, c in cells)",
            "you say False. Every step down is the same",
        ),
        (
            "def is_relative(angle):\n"
            "    cells = [(r, c) for r in range(7) for c in range(8)]\n"
            "    steps = [angle(r + 2, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - steps[0]) > 1 - 1e-9 for s in steps)",
            "(row - 2 * column) ** 2 is not relative",
        ),
        (
            STEPS + "    return [angle(r + 1, c) - angle(r, c) for r, c in cells]",
            "for one hand, got 64 values",
        ),
        (
            RELATIVE
            + "square = angle(1, 1) - angle(1, 0) - angle(0, 1) + angle(0, 0)\n"
            "    return math.cos(square) > 1 - 1e-9",
            "is not relative; you say True",
        ),
        (
            STEPS + "    def same(a, b):\n"
            "        return abs(math.cos(a) - math.cos(b)) < 1e-9\n"
            "    down, right = angle(1, 0) - angle(0, 0), angle(0, 1) - angle(0, 0)\n"
            "    return all(same(angle(r + 1, c) - angle(r, c), down)\n"
            "               and same(angle(r, c + 1) - angle(r, c), right)\n"
            "               for r, c in cells)",
            "abs(row - column) is not relative",
        ),
        (
            STEPS + "    turn = 2 * math.pi\n"
            "    down = {(angle(r + 1, c) - angle(r, c)) % turn for r, c in cells}\n"
            "    right = {(angle(r, c + 1) - angle(r, c)) % turn for r, c in cells}\n"
            "    return len(down) == 1 and len(right) == 1",
            "their last digits",
        ),
        (
            "def is_relative(angle):\n"
            "    cells = [(r, c) for r in range(4) for c in range(4)]\n"
            "    down = [angle(r + 1, c) - angle(r, c) for r, c in cells]\n"
            "    right = [angle(r, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - x[0]) > 1 - 1e-9\n"
            "               for x in (down, right) for s in x)",
            "min(row, 5)",
        ),
        (
            STEPS + "    down = [angle(r + 1, c) - angle(r, c) for r, c in cells]\n"
            "    right = [angle(r, c + 1) - angle(r, c) for r, c in cells]\n"
            "    return all(math.cos(s - x[0]) > 0.99\n"
            "               for x in (down, right) for s in x)",
            "0.001 * row * column is not relative",
        ),
    ],
    "17.4": [
        (NEXT + "return 10", "the largest position is 25"),
        (NEXT + "return start + max(time, height, width) + 1", "you begin the text"),
        (NEXT + "return start + height", "you begin the text"),
        (NEXT + "return start + min(time, height, width)", "you begin the text"),
        (NEXT + "return max(start, time, height, width) + 4", "you begin the text"),
        (NEXT + "return start + time * height * width", "counted every cell"),
        (NEXT + "return start + time + height + width", "added up the axes"),
        (NEXT + "return start + max(time, height, width) - 1", "would land on it"),
        (NEXT + "return max(time, height, width)", "left out where the image starts"),
        (NEXT + "return start + max(height, width)", "left out the time"),
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
        (PARTNER + "A += A @ A @ A\n    return A", "changed A"),
        (PARTNER + "return A.matrix_exp()", "not skew"),
        (PARTNER + "return A.flip(0).flip(1)", "do not add up"),
        (PARTNER + "return A + torch.eye(len(A)).double()", "not skew"),
        (PARTNER + "return A @ A @ A.T @ A", "symmetric"),
        (
            PARTNER + "B = A @ A @ A\n    B[0, 1], B[1, 0] = 0, 0\n    return B",
            "do not add up",
        ),
    ],
}

OTHER = {
    "17.1": [
        """
def looks_at(row, column, width):
    for _ in range(13):
        column += 1
        if column == width:
            row, column = row + 1, 0
    return torch.tensor([row, column])
""",
        """
def looks_at(row, column, width):
    import numpy as np
    return np.unravel_index(row * width + column + 13, (row + 20, width))
""",
        """
def looks_at(row, column, width):
    column += 13
    return [row + column // width, float(column % width)]
""",
    ],
    "17.2": [
        """
def share(trained, size):
    total = 0
    for r in range(size - 2):
        for c in range(size - 1):
            total += 1 if r + 2 < trained and c + 1 < trained else 0.125
    return torch.tensor(total / (size - 2) / (size - 1))
""",
        """
def share(trained, size):
    from fractions import Fraction
    known = Fraction((trained - 2) * (trained - 1), (size - 2) * (size - 1))
    return known + (1 - known) / 8
""",
        """
def share(trained, size):
    import numpy as np
    knows = np.full((size, size), 1 / 8, dtype=np.float32)
    knows[:trained - 2, :trained - 1] = 1
    return knows[:size - 2, :size - 1].mean()
""",
    ],
    "17.3": [
        """
def is_relative(angle):
    turned = torch.tensor([[complex(math.cos(angle(r, c)), math.sin(angle(r, c)))
                            for c in range(9)] for r in range(9)])
    wanted = turned[:, :1] * turned[:1, :] / turned[0, 0]
    steps = [turned[1:, 0] / turned[:-1, 0], turned[0, 1:] / turned[0, :-1]]
    straight = all((step - step[0]).abs().max() < 1e-4 for step in steps)
    return straight and bool((turned - wanted).abs().max() < 1e-4)
""",
        """
def is_relative(angle):
    grid = torch.arange(9, dtype=torch.float64)
    turned = angle(grid[:, None], grid[None, :]) + torch.zeros(9, 9)
    guess = turned[:, :1] + turned[:1, :] - turned[0, 0]
    steps = torch.stack([turned[1:, 0] - turned[:-1, 0],
                         turned[0, 1:] - turned[0, :-1]])
    worst = [(turned - guess).cos().min(), (steps - steps[:, :1]).cos().min()]
    return min(worst) > 1 - 1e-9
""",
    ],
    "17.4": [
        """
def text_goes_on_at(start, time, height, width):
    image = start + grid_positions(time, height, width)
    return image.max() + 1
""",
        """
def text_goes_on_at(start, time, height, width):
    last = [start + length - 1 for length in (time, height, width)]
    return torch.tensor(sorted(last)[-1] + 1.0)
""",
        """
def text_goes_on_at(start, time, height, width):
    from fractions import Fraction
    from rope_teach.axes import multimodal_positions
    words = [start] if start else []
    seen = multimodal_positions([*words, (time, height, width), 1])
    return Fraction(int(seen[-1, 2]))
""",
    ],
    "17.5": [
        """
def partner(A):
    return torch.linalg.inv(A) - A
""",
        """
def partner(A):
    B = A.clone()
    for _ in range(4):
        B = B @ A
    return (B / B.abs().max()).float()
""",
        """
def partner(A):
    import numpy as np
    values, vectors = np.linalg.eig(A.numpy())
    return (vectors * (1j * np.sign(values.imag)) @ np.linalg.inv(vectors)).real
""",
    ],
}
