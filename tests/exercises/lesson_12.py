"""Seeded answers for lesson 12: misconceptions with their message, other solutions."""

REVIEWED = True
SET_UP = "import numpy as np\nfrom rope_teach.course.models import sample"

SIZE = "def compressed(nats, count):\n    "
ROUND = "def come_round(head_dim, base, trained):\n    "
CLIFF = "def cliff(loss, trained, height):\n    "
LOOP = CLIFF + "for m in range(trained, len(loss)):\n        if loss[m] > "
FOUND = ":\n            return m"
CHANCES = "def chances(logits, temperature, top_p):\n    "
RANKED = CHANCES + (
    "chance = (logits / temperature).softmax(-1)\n"
    "    ranked, order = chance.sort(descending=True)\n"
    "    added = ranked.cumsum(-1)\n    "
)
PUT = (
    "\n    result = torch.zeros_like(chance)\n"
    "    result[order] = ranked / ranked.sum()\n    return result"
)

WRONG = {
    "12.1": [
        (SIZE + "return count * nats / math.log(2)", "Eight bits make a byte"),
        (SIZE + "return count * nats * math.log(2) / 8", "times ln 2"),
        (SIZE + "return count * nats / 8", "1.44 bits"),
        (SIZE + "return nats / math.log(2)", "the bits for one byte"),
        (SIZE + "return count * math.log2(nats) / 8", "already is a logarithm"),
        (SIZE + "return count * (1 - nats / 8)", "it takes"),
        (SIZE + "return min(count, count * nats / math.log(256))", "the text grows"),
        (SIZE + "return count * nats / math.log(256) + 8", "it takes"),
        (SIZE + "return 125", "it takes"),
        (SIZE + "return round(nats / math.log(2)) * count / 8", "it takes"),
        (SIZE + "return count * nats / 5.5", "it takes"),
        (SIZE + "return nats / math.log(256)", "bytes for one byte"),
    ],
    "12.2": [
        (
            ROUND + "f = inverse_frequencies(head_dim, base)\n"
            "    return int((1 / f <= trained).sum())",
            "one radian",
        ),
        (
            ROUND + "w = wavelengths(inverse_frequencies(head_dim, base))\n"
            "    return int((w > trained).sum())",
            "do *not* come round",
        ),
        (
            ROUND + "return sum(2 * math.pi * base ** (i / head_dim) <= trained\n"
            "               for i in range(head_dim // 2))",
            "The exponent is -2i/d",
        ),
        (ROUND + "return head_dim // 2", "come round"),
        (
            ROUND + "waves = [2 * math.pi * base ** (2 * i / head_dim)\n"
            "             for i in range(head_dim)]\n"
            "    return sum(wave <= trained for wave in waves)",
            "each hand has two features",
        ),
        (ROUND + "return 2", "6 come round"),
        (
            ROUND + "waves = [2 * math.pi * base ** (2 * i / head_dim)\n"
            "             for i in range(1, head_dim // 2)]\n"
            "    return sum(wave <= trained for wave in waves)",
            "come round",
        ),
        (
            ROUND + "w = wavelengths(inverse_frequencies(head_dim))\n"
            "    return int((w <= trained).sum())",
            "come round",
        ),
        (
            ROUND + "w = wavelengths(inverse_frequencies(head_dim, base))\n"
            "    return int((w <= trained).nonzero().max())",
            "come round",
        ),
        (
            ROUND + "return max(1, int((wavelengths(inverse_frequencies(\n"
            "        head_dim, base)) <= trained).sum()))",
            "0 come round",
        ),
    ],
    "12.3": [
        (
            CLIFF
            + "return int((loss > loss[:trained].mean() + height).int().argmax())",
            "nothing comes before them",
        ),
        (
            CLIFF + "bad = loss[trained:] > loss[:trained].mean() + height\n"
            "    return int(bad.int().argmax()) if bad.any() else None",
            "count from position 8",
        ),
        (
            CLIFF + "bad = loss[trained:] > loss[:trained].mean() + height\n"
            "    return trained + int(bad.int().argmax())",
            "None where there is none",
        ),
        (
            CLIFF + "return trained + int(loss[trained:].argmax())",
            "comes before it",
        ),
        (LOOP + "height" + FOUND, "not more"),
        (LOOP + "loss[m - 1] + height" + FOUND, "not more"),
        (LOOP + "loss[trained - 1] + height" + FOUND, "not more"),
        (LOOP + "loss.mean() + height" + FOUND, "more than"),
        (LOOP + "loss[:trained].min() + height" + FOUND, "not more"),
        (LOOP + "loss[:trained].max() + height" + FOUND, "comes before it"),
        (LOOP + "loss[:trained].median() + height" + FOUND, "not more"),
        (LOOP + "loss[trained // 2:trained].mean() + height" + FOUND, "not more"),
        (LOOP + "loss[:trained + 1].mean() + height" + FOUND, "more than"),
        (LOOP + "loss[1:trained].mean() + height" + FOUND, "not more"),
        (
            (LOOP + "loss[:trained].mean() + height" + FOUND).replace("] >", "] >="),
            "2.500: not more",
        ),
        (
            (LOOP + "loss[:trained].mean() + height" + FOUND).replace(
                "range(trained,", "range(trained + 1,"
            ),
            "begins at `trained`",
        ),
        (
            CLIFF + "level = loss[:trained].mean() + height\n"
            "    if loss[-1] <= level:\n        return None\n"
            "    low, high = trained, len(loss) - 1\n"
            "    while low < high:\n"
            "        middle = (low + high) // 2\n"
            "        if loss[middle] > level:\n            high = middle\n"
            "        else:\n            low = middle + 1\n"
            "    return low",
            "comes before it",
        ),
        (
            CLIFF + "loss -= loss[:trained].mean()\n"
            "    for m in range(trained, len(loss)):\n"
            "        if loss[m] > height:\n            return m",
            "changed loss",
        ),
    ],
    "12.4": [
        (RANKED + "ranked = ranked * (added <= top_p)" + PUT, "add up to"),
        (RANKED + "ranked = ranked * (ranked > 1 - top_p)" + PUT, "tokens"),
        (
            RANKED + "ranked = ranked * (added - ranked < top_p)\n"
            "    result = torch.zeros_like(chance)\n"
            "    result[order] = ranked\n    return result",
            "not to 1",
        ),
        (
            RANKED + "ranked = ranked * (added - ranked < top_p)\n"
            "    return ranked / ranked.sum()",
            "likeliest first",
        ),
        (
            (RANKED + "ranked = ranked * (added - ranked < top_p)" + PUT).replace(
                "logits / temp", "logits * temp"
            ),
            "times the temperature",
        ),
        (
            (RANKED + "ranked = ranked * (added - ranked < top_p)" + PUT).replace(
                "(logits / temperature)", "logits"
            ),
            "With 9 tokens",
        ),
        (
            CHANCES + "first = logits.softmax(-1)\n"
            "    ranked, order = first.sort(descending=True)\n"
            "    keep = torch.zeros_like(first)\n"
            "    keep[order] = (ranked.cumsum(-1) - ranked < top_p).float()\n"
            "    chance = (logits / temperature).softmax(-1) * keep\n"
            "    return chance / chance.sum()",
            "chosen at temperature 1",
        ),
        (
            CHANCES + "return (logits / temperature).softmax(-1)",
            "are enough",
        ),
        (RANKED + "ranked = ranked * (added < top_p + 0.2)" + PUT, "tokens"),
        (
            RANKED + "keep = int(top_p * len(chance)) or 1\n"
            "    ranked[keep:] = 0" + PUT,
            "tokens",
        ),
        (
            CHANCES + "chance = (logits / temperature).softmax(-1)\n"
            "    kept = chance.cumsum(-1) - chance < top_p\n"
            "    return chance * kept / (chance * kept).sum()",
            "tokens",
        ),
        (
            CHANCES + "logits /= temperature\n"
            "    chance = logits.softmax(-1)\n"
            "    ranked, order = chance.sort(descending=True)\n"
            "    ranked = ranked * (ranked.cumsum(-1) - ranked < top_p)" + PUT,
            "changed logits",
        ),
        (
            CHANCES + "return sample(logits[None], temperature, None, top_p)",
            "must have shape",
        ),
        (
            RANKED
            + "ranked = (ranked * (added - ranked < top_p)).clamp(max=0.5)"
            + PUT,
            "right tokens",
        ),
    ],
}

OTHER = {
    "12.1": [
        SIZE + "return round(count * nats / math.log(256))",
        SIZE + "return torch.tensor(nats).double() * math.log2(math.e) * count / 8",
        SIZE + "from fractions import Fraction\n"
        "    return Fraction(nats / math.log(2)) * count / 8",
    ],
    "12.2": [
        ROUND
        + "return (wavelengths(inverse_frequencies(head_dim, base)) <= trained).sum()",
        ROUND + "i = np.arange(head_dim // 2)\n"
        "    return (trained * base ** (-2.0 * i / head_dim) >= 2 * np.pi).sum()",
        ROUND + "hands = math.log(trained / (2 * math.pi), base) * head_dim / 2\n"
        "    return min(head_dim // 2, max(0, math.floor(hands) + 1))",
    ],
    "12.3": [
        CLIFF + "bad = (loss > loss[:trained].mean() + height).nonzero().flatten()\n"
        "    bad = bad[bad >= trained]\n"
        "    return bad[0] if len(bad) else None",
        CLIFF + "values = loss.tolist()\n"
        "    level = sum(values[:trained]) / trained + height\n"
        "    return next((m for m, x in enumerate(values)\n"
        "                 if m >= trained and x > level), None)",
        CLIFF + "loss = np.asarray(loss, dtype=np.float32)\n"
        "    bad = np.flatnonzero(loss[trained:] - loss[:trained].mean() > height)\n"
        "    return trained + bad[0] if bad.size else None",
    ],
    "12.4": [
        CHANCES + "z = np.asarray(logits, dtype=np.float64) / temperature\n"
        "    p = np.exp(z - z.max())\n"
        "    p /= p.sum()\n"
        "    result, total = np.zeros_like(p), 0.0\n"
        "    for token in np.argsort(-p):\n"
        "        if total >= top_p:\n            break\n"
        "        result[token] = p[token]\n"
        "        total += p[token]\n"
        "    return result / result.sum()",
        RANKED + "least = int((added < top_p).sum().clamp(max=len(added) - 1))\n"
        "    kept = chance.masked_fill(chance < ranked[least], 0)\n"
        "    return (kept / kept.sum()).tolist()",
        RANKED + "out = (added - ranked >= top_p)\n"
        "    hidden = torch.empty_like(out).scatter(0, order, out)\n"
        "    z = (logits.double() / temperature).masked_fill(hidden, -math.inf)\n"
        "    return z.softmax(-1)",
    ],
}
