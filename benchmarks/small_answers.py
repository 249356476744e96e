"""The small real model's answers about code, by kind, length and depth of the answer.

It answers every question about the standard library's test functions that fits its
trained length. Lesson 15 reads the result. About two minutes of one core:

    python benchmarks/small_answers.py
"""

import platform
import time
from datetime import date
from typing import Any

import torch
from common import processor, save

from rope_teach.course.functions import first_match, most_common, questions
from rope_teach.course.small import answer_prompt, load_small, write
from rope_teach.course.training import RESULTS, exact_match, f1

AT_A_TIME, STEPS, TRAINED = 16, 40, 512


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    model, tokens = load_small()
    common = most_common(questions("train"))
    asked = [
        (q, prompt)
        for q in questions("test")
        if len(prompt := answer_prompt(tokens, q.context, q.question)) + STEPS
        <= TRAINED
    ]
    asked.sort(key=lambda pair: len(pair[1]))  # alike in length, so little padding
    runs: list[dict[str, Any]] = []
    for n in range(0, len(asked), AT_A_TIME):
        part = asked[n : n + AT_A_TIME]
        texts = write(model, tokens, [prompt for _, prompt in part], STEPS)
        for (q, _), text in zip(part, texts, strict=True):
            written = {
                "model": text.strip(),
                "most common": common[q.kind],
                "first match": first_match(q),
            }
            code = len(tokens.encode(q.context))
            runs.append(
                {
                    "kind": q.kind,
                    "question": q.question,
                    "answer": q.answer,
                    "written": written["model"],
                    "tokens": code,
                    "depth": round(q.start / len(q.context), 3),
                    "found": written["model"] in q.context,
                    "exact": {k: exact_match(v, q.answer) for k, v in written.items()},
                    "f1": {k: round(f1(v, q.answer), 4) for k, v in written.items()},
                }
            )
    facts = {
        "command": "python benchmarks/small_answers.py",
        "date": date.today().isoformat(),
        "machine": f"{processor()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu_seconds": round(time.process_time() - started),
        "settings": {"steps": STEPS, "trained": TRAINED, "questions": len(runs)},
    }
    save(RESULTS / "small_answers.json", facts, runs)


if __name__ == "__main__":
    main()
