"""The doctor finds what is wrong, says how to fix it, and is calm when all is well."""

import re
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from packaging.specifiers import SpecifierSet

from rope_teach import __main__
from rope_teach.course import doctor


def failures(check):
    return [finding for finding in check() if finding.status == "FAIL"]


def test_all_is_well_here(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "[FAIL]" not in printed
    for what in (
        "[OK]   Python: ",
        "[OK]   torch: ",
        "[OK]   jupyterlab: ",
        "[OK]   rotation on cpu",
        "[OK]   figures: ",
        "[OK]   Jupyter kernel: ",
        "Everything is fine",
    ):
        assert what in printed


def test_each_course_dependency_is_looked_at():
    looked_at = {finding.what for finding in doctor.requirements()}
    assert {"torch", "jupyterlab", "matplotlib", "safetensors"} <= looked_at
    assert ("triton" in looked_at) == (sys.platform == "linux")
    assert not {"rope-teach", "nbconvert", "pytest"} & looked_at


def test_in_a_notebook_no_jupyter_of_one_s_own_is_asked_for(monkeypatch):
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    looked_at = {finding.what for finding in doctor.requirements()}
    assert {"torch", "matplotlib"} <= looked_at
    assert not {"jupyterlab", "jupyterlab-rise", "ipykernel"} & looked_at
    (finding,) = doctor.kernel()
    assert finding.found == "this notebook runs in it"


def test_missing_package_is_named(monkeypatch):
    def version(name, really=metadata.version):
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return really(name)

    monkeypatch.setattr(metadata, "version", version)
    (finding,) = failures(doctor.requirements)
    assert str(finding).startswith("[FAIL] matplotlib: not installed\n")
    assert finding.fix == doctor.INSTALL


def test_old_version_is_named_with_the_one_needed(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.2")
    (torch_finding, *_) = failures(doctor.requirements)
    assert torch_finding.what == "torch"
    assert re.fullmatch(r"1\.0\.2, but the course needs >=2\.\d+", torch_finding.found)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 15, 0)])
def test_unsupported_python(monkeypatch, version):
    monkeypatch.setattr("sys.version_info", version)
    (finding,) = failures(doctor.python)
    assert finding.found.startswith(f"3.{version[1]}.")
    assert ">=3.10" in finding.found


@pytest.mark.parametrize(
    ("version", "bound", "holds"),
    [
        ("2.13.0+cpu", ">=2.5", True),
        ("2.4.1", ">=2.5", False),
        ("10.0", ">=9.1", True),
        ("3.15.0", "<3.15", False),
        ("3.9.20", "<3.15", True),
    ],
)
def test_versions_compare_as_numbers(version, bound, holds):
    finding = doctor._compare("it", version, SpecifierSet(bound), "")
    assert (finding.status == "OK") is holds


def test_broken_rotation_is_named_with_its_law(monkeypatch):
    monkeypatch.setattr(doctor.RotaryEmbedding, "rotate", lambda self, x, m: 2 * x)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding, *_) = failures(doctor.rotation)
    assert finding.what.startswith("rotation on cpu")
    assert "LawBroken: at position 0 the output must be the input" in finding.found


def test_broken_gpu_is_named_with_a_way_round_it(monkeypatch):
    def rotate(self, x, positions):
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A very old GPU")
    monkeypatch.setattr(doctor.RotaryEmbedding, "rotate", rotate)
    finding = failures(doctor.rotation)[1]
    assert finding.what == "rotation on A very old GPU"
    assert "CUDA_VISIBLE_DEVICES" in finding.fix


def test_text_without_ink_is_a_failure(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.text", lambda self, *args: None)
    (finding,) = failures(doctor.figures)
    assert finding.found == "text is not drawn"


def test_kernel_of_another_python_is_a_failure(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/another/place")
    (finding,) = failures(doctor.kernel)
    assert finding.found.startswith("runs the Python in ")
    assert "ipykernel install" in finding.fix


def test_kernel_with_another_package_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    (finding,) = failures(doctor.kernel)
    assert finding.found.startswith("imports ")


def test_package_without_lessons_is_only_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "LESSONS", tmp_path)
    (finding,) = doctor.lessons()
    assert finding.status == "WARN"
    assert "install" in finding.fix


def test_first_lesson_is_found(monkeypatch, tmp_path):
    for name in ("00_start_here.ipynb", "01_next.ipynb", "notes.ipynb"):
        (tmp_path / name).touch()
    monkeypatch.setattr(doctor, "LESSONS", tmp_path)
    (finding,) = doctor.lessons()
    assert finding.status == "OK"
    assert finding.found == "2 found, starting with 00_start_here.ipynb"


def test_check_that_cannot_finish_is_a_failure_and_stops_no_other(monkeypatch, capsys):
    def broken():
        raise ImportError("libfreetype is not there\nmore")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.python))
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert "[FAIL] broken: ImportError: libfreetype is not there\n" in printed
    assert "[OK]   Python" in printed
    assert "\n1 problem found.\n" in printed

    monkeypatch.setattr(doctor, "CHECKS", (broken, broken))
    assert doctor.main() == 1
    assert "2 problems found. Start with the first" in capsys.readouterr().out


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    assert "doctor" in capsys.readouterr().out


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["docter"])
    assert "invalid choice" in capsys.readouterr().err
