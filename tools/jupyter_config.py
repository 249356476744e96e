"""JupyterLab for the course: `jupyter lab --config tools/jupyter_config.py`.

It asks no question about news, and keeps a lesson's file free of this machine.
"""

import json
import time
from pathlib import Path

KERNEL = ("kernelspec", "language_info")


def keep_kernel(model, path, contents_manager, **_):
    """Save a lesson with the kernel's name and version that its file had before.

    JupyterLab writes its own kernel into every notebook that it saves. It saves when a
    live deck is started, and two minutes after, although nobody changed anything.
    """
    file = Path(contents_manager.root_dir, path)
    if model["type"] != "notebook" or not file.exists():
        return
    before = metadata_of(file)
    if "rope_teach" in before:
        after = model["content"]["metadata"]
        after.update({key: before[key] for key in KERNEL if key in before})


def metadata_of(file):
    """What a notebook says of itself, once it is whole.

    The page and its live deck may save at once: then one finds the file half written.
    """
    for _ in range(40):
        try:
            return json.loads(file.read_text(encoding="utf-8")).get("metadata", {})
        except ValueError:
            time.sleep(0.05)
    return {}


c = get_config()  # noqa: F821  (Jupyter reads this file with it)
c.ContentsManager.pre_save_hook = keep_kernel
c.LabApp.news_url = ""
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
