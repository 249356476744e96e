"""The set-up says one thing in all its files, and fails clearly on a bare machine."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rope_teach import course

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
NEEDED = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *EXTRAS.values())
    for line in lines
    if not line.startswith(PROJECT["name"])  # one extra in another
]

needs_make = pytest.mark.skipif(
    os.name == "nt" or not shutil.which("make"), reason="there is no make here"
)


def pins():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(line) for line in stripped if line]


def make_extras(target):
    """The extras that a target of the Makefile installs."""
    return set(re.search(rf"\.{target}: EXTRAS := (\S+)", MAKEFILE)[1].split(","))


def editable(line):
    """The path and the extras of a pip line's ``-e path[extras]``."""
    path, extras = re.search(r"-e \"?([^\s\[\"]+)\[([\w,]+)\]", line).groups()
    return path, set(extras.split(","))


def conda_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    return environment["dependencies"]


def conda_pip_lines():
    (pip,) = [entry for entry in conda_packages() if isinstance(entry, dict)]
    return pip["pip"]


# ------------------------------------------------------------------ one project


def test_conda_installs_this_project_with_the_extras_of_make_course():
    (line,) = [line for line in conda_pip_lines() if line.startswith("-e")]
    path, extras = editable(line)
    assert (ROOT / path).resolve() == ROOT
    assert PROJECT["name"] == "rope-teach"
    assert extras == make_extras("course")
    assert extras <= set(EXTRAS)


def test_conda_installs_the_tested_set():
    (line,) = [line for line in conda_pip_lines() if line.startswith("-c")]
    assert (ROOT / line.removeprefix("-c").strip()) == ROOT / "constraints.txt"
    assert "pip" in conda_packages()


def test_conda_and_make_want_the_python_of_the_project():
    wanted = SpecifierSet(PROJECT["requires-python"])
    (python,) = [entry for entry in conda_packages() if str(entry).startswith("python")]
    assert SpecifierSet(python.removeprefix("python")) == wanted
    low, high = re.search(
        r"\((\d+, \d+)\) <= sys.version_info < \((\d+, \d+)\)", MAKEFILE
    ).groups()
    assert SpecifierSet(f">={low},<{high}".replace(", ", ".")) == wanted
    assert [version for version in PYTHONS if version in wanted] == PYTHONS
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in README


def test_make_test_installs_every_extra():
    assert make_extras("test") | {"lessons"} == set(EXTRAS)
    assert "rope-teach[lessons]" in EXTRAS["course"]
    assert make_extras("slides") == {"course", "slides"}


def test_base_install_is_torch_alone():
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch"]


# -------------------------------------------------------------- one tested set


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_constraints_pin_each_direct_dependency_once(needed, python):
    if needed.name == "triton":
        assert not [pin for pin in pins() if pin.name == "triton"]
        return  # a CUDA build of torch brings the one that fits it
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    found = [
        pin
        for pin in pins()
        if pin.name == needed.name
        and (pin.marker is None or pin.marker.evaluate(environment))
    ]
    assert len(found) == 1
    (specifier,) = found[0].specifier
    assert specifier.operator == "=="
    assert specifier.version in needed.specifier


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_each_direct_dependency_has_a_lower_bound_and_no_upper_one(needed):
    assert [bound.operator for bound in needed.specifier] == [">="]


# ------------------------------------------------------- README says what exists


def test_readme_starts_with_the_two_commands():
    (first, *_) = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    commands = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make course", "make test"]


def test_every_make_command_in_readme_is_a_target():
    code = re.findall(r"```.*?```|`[^`]+`", README, re.DOTALL)
    named = set(re.findall(r"\bmake ([a-z]+)", "\n".join(code)))
    assert {"course", "test", "slides", "bench"} <= named
    assert named <= set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def test_pip_lines_in_readme_install_what_make_course_does():
    lines = [line for line in README.splitlines() if " -m pip install " in line]
    assert len(lines) == 2  # for Linux and macOS, and for Windows
    for line in lines:
        assert "-c constraints.txt" in line
        assert editable(line) == (".", make_extras("course"))


def test_readme_names_the_extras_of_make_test():
    (named,) = re.findall(r"install `\"\.\[([\w,]+)\]\"`", README)
    assert set(named.split(",")) == make_extras("test")


def test_each_link_in_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if not link.startswith("https://")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_readme_lists_each_lesson_with_its_title_and_no_other():
    listed = re.findall(r"\[(\d\d) (.+?)\]\(lessons/(\S+)\)", README)
    there = []
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.ipynb")):
        title, *_ = nbformat.read(path, as_version=4).cells[0].source.splitlines()
        there.append((path.name[:2], title.removeprefix("# "), path.name))
    assert listed == there


def test_code_in_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    use, shared, cached, packed, identified, checkpoint, longer, own = re.findall(
        r"```python\n(.*?)```", README, re.DOTALL
    )
    exec(use, names)
    assert names["q"].shape == (1, 8, 10, 64)
    assert names["k"].shape == (1, 2, 10, 64)
    before = names["q"], names["k"]
    exec(shared, names)
    thrice = before
    for _ in range(3):
        thrice = names["rope"](*thrice)
    assert torch.equal(names["q"], thrice[0]) and torch.equal(names["k"], thrice[1])
    exec(cached, names)
    once = names["rope"](thrice[0], thrice[1])
    assert torch.equal(names["q"], once[0]) and torch.equal(names["keys"], once[1])
    assert names["cache"].next == names["values"].shape[2] == 10
    exec(packed, names)
    assert names["positions"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert names["mask"].sum() == 6 * 6 + 4 * 4
    exec(identified, names)
    assert names["theirs"].correct and names["weight"].shape == (256, 512)
    exec(checkpoint, names)
    assert names["weights"]["layers.0.attention.wq.weight"].shape == (256, 256)
    exec(longer, names)
    assert names["rope"].inv_freq[0] == 0.25  # linear, by a factor of 4
    exec(own, names)
    assert (tmp_path / "mine.safetensors").is_file() and capsys.readouterr().out


def test_commands_in_readme_run():
    (command,) = re.findall(r"^python -m rope_teach identify (\S+)$", README, re.M)
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "rope_teach", "identify", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "half: (0, 32)" in done.stdout


def test_hosted_notebooks_install_what_the_lessons_import():
    lines = [line for line in README.splitlines() if line.startswith("%pip install ")]
    assert set(lines) == {'%pip install "rope-teach[lessons] @ git+ADDRESS"'}
    imported = {Requirement(line).name for line in EXTRAS["lessons"]}
    assert set(course._NEEDED) - {"IPython"} <= imported


# ------------------------------------------------------------ make, ci and files


@needs_make
def test_make_course_opens_a_folder_that_git_ignores(tmp_path):
    dry = ["make", "-n", "course", f"VENV={tmp_path}"]
    steps = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '-m rope_teach lessons "my-course"' in steps.stdout
    assert '"my-course/00_start_here.ipynb"' in steps.stdout
    assert "/my-course/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


@needs_make
def test_make_course_spares_a_class_jupyterlab_s_question(tmp_path):
    (tmp_path / "pyvenv.cfg").touch()
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n", encoding="utf-8")  # installs nothing
    python.chmod(0o755)
    install = ["make", f"{tmp_path}/.course", f"VENV={tmp_path}"]
    subprocess.run(install, cwd=ROOT, capture_output=True, check=True)
    place = tmp_path / "etc/jupyter/labconfig/default_setting_overrides.json"
    (settings,) = json.loads(place.read_text("utf-8")).values()
    assert settings == {"fetchNews": "false"}


@needs_make
def test_make_alone_lists_every_target():
    listed = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    assert [name for name in phony if f"make {name}" not in listed] == ["help"]


def make_environment(tmp_path, python):
    """Run make for a new environment with ``python``, a shell script."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    fake.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", f"{venv}/pyvenv.cfg", f"VENV={venv}", f"PYTHON={fake}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not venv.exists()
    return done


@needs_make
def test_make_refuses_an_old_python_and_says_so(tmp_path):
    done = make_environment(
        tmp_path, 'test "$1" = --version && echo Python 3.9.18 || exit 1'
    )
    assert done.returncode != 0
    assert "needs Python 3.10 to 3.14" in done.stderr
    assert "is Python 3.9.18." in done.stderr


@needs_make
def test_make_says_what_to_do_without_venv_and_leaves_nothing_behind(tmp_path):
    done = make_environment(
        tmp_path, f'test "$1" = -c || {{ mkdir {tmp_path}/venv; exit 1; }}'
    )
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr


def test_ci_runs_the_test_command_of_readme_on_a_clone_and_last():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == "make test"
    assert any(line.startswith("git clone ") for line in script)
    assert "export ROPE_TEACH_REQUIRE_BROWSER=1" in script
    assert 'export CUDA_VISIBLE_DEVICES=""' in script


def test_hosted_workflow_calls_the_same_script():
    path = ROOT / ".github" / "workflows" / "ci.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert {"run": "bash .ci/run"} in jobs["everything"]["steps"]


def test_no_file_names_a_registry_or_a_place_on_one_machine():
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone, so nothing says which files are committed")
    hosts = (
        r"pypi[.]org|pythonhosted[.]org|(files|download)[.]pytorch[.]org|anaconda[.]org"
    )
    places = r"(?<![\w.])/(tmp|root|work|home|Users)/\w"
    bad = re.compile(f"{hosts}|{places}")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".png", ".safetensors", ".woff2"} or not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            found += [f"{name}: {line[:80]}" for _ in bad.findall(line)[:1]]
    assert found == []


def test_no_script_hides_a_module_of_python():
    # A script's own folder is searched first, by the programs that it starts too: an
    # encodings.py there stopped torch's compiler from trying vector instructions.
    folders = ("benchmarks", "site", "slides", "tests", "tools")
    scripts = [path for name in folders for path in (ROOT / name).glob("*.py")]
    assert len(scripts) > len(folders)
    assert not {path.stem for path in scripts} & sys.stdlib_module_names


def test_a_lesson_that_is_being_saved_twice_keeps_its_kernel(tmp_path):
    config = runpy.run_path(str(ROOT / "tools" / "jupyter_config.py"),
                            {"get_config": Mock()})  # fmt: skip
    file = tmp_path / "lesson.ipynb"
    file.write_text("")  # the other page has only begun to write it
    whole = json.dumps({"metadata": {"rope_teach": {}, "kernelspec": "the lesson's"}})
    threading.Timer(0.2, file.write_text, [whole]).start()
    metadata = {"kernelspec": "this machine's", "language_info": "none before"}
    model = {"type": "notebook", "content": {"metadata": metadata}}
    config["keep_kernel"](model, file.name, Mock(root_dir=tmp_path))
    assert metadata["kernelspec"] == "the lesson's"
