"""What pyproject.toml cannot say: find every package, and bring the lessons along.

The notebooks in lessons/ are the source; a wheel carries them beside the course.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rope_teach*"]), "rope_teach.course.lessons"],
    package_dir={"rope_teach.course.lessons": "lessons"},
)
