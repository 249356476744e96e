"""How Sphinx makes the site of what `build.py` lays out for it."""

import os
import sys
from pathlib import Path
from urllib.parse import urlencode

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The one address of the repository: buttons and links to files are made from it.
# Without one the site has no buttons, and names files without linking them.
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
REPOSITORY = os.environ.get("REPOSITORY") or CITATION.get("repository-code", "")
REPOSITORY = REPOSITORY.rstrip("/").removesuffix(".git")
BRANCH = os.environ.get("BRANCH") or "main"
# A school's own hub, if it has nbgitpuller. Without one the button asks which.
JUPYTERHUB = os.environ.get("JUPYTERHUB", "").rstrip("/")

project = "rope_teach"
author = CITATION["authors"][0]["name"]
project_copyright = author
version = release = CITATION["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "sphinx_book_theme"
html_title = "rope_teach"
html_logo = html_favicon = "../slides/deck/clocks.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_search_summary = False  # each summary would be asked of a server
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search stands at the side already
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "use_download_button": True,
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": BRANCH,
        "path_to_docs": "",  # pages lie where their notebooks do
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "jupyterhub_url": JUPYTERHUB,
            "notebook_interface": "jupyterlab",
        },
    }

# Notebooks are shown as they were saved, and formulas by the decks' own MathJax.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False  # dollars stand in the answers of Predict too: plain HTML
mathjax_path = "../decks/vendor/mathjax/tex-chtml-full.js"
mathjax3_config = {"tex": {"inlineMath": [["$", "$"], ["\\(", "\\)"]]}}
html_assets_policy = "per_page"

# Docstrings are NumPy's; a name in single backticks is code.
default_role = "code"
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
add_module_names = False


def ask_for_the_hub(app, page, template, context, doctree):
    """Add a JupyterHub button that asks for the hub's address, where none is set."""
    for button in context.get("header_buttons", []):
        if button.get("label") == "launch-buttons" and not JUPYTERHUB:
            path = f"lab/tree/{REPOSITORY.rpartition('/')[2]}/{page}.ipynb"
            query = urlencode({"repo": REPOSITORY, "branch": BRANCH, "urlpath": path})
            button["buttons"].append({
                "type": "link",
                "text": "JupyterHub",
                "tooltip": "Open on your JupyterHub",
                "icon": "_static/images/logo_jupyterhub.svg",
                "url": f"https://nbgitpuller.readthedocs.io/en/latest/link.html?{query}",
            })  # fmt: skip


def setup(app):
    """Come after the theme, which makes the other buttons."""
    app.connect("html-page-context", ask_for_the_hub, priority=900)
