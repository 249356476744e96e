"""What holds for every test process, and for the kernels that they start."""

import os
import runpy
from pathlib import Path

import torch

OFFLINE = Path(__file__).parent / "rope_teach" / "course" / "grading" / "offline"

# Kernels, workers and other children have no network, and neither has this process.
inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
others = [path for path in inherited if path not in ("", str(OFFLINE))]
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *others])
runpy.run_path(str(OFFLINE / "sitecustomize.py"))

# Two workers with two threads each take turns on two cores, and wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU the CUDA kernel runs in Triton's interpreter, chosen before its import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# It is no module to import again: Python's own start does that.
collect_ignore = [str(OFFLINE)]
