"""Packaging for smartrouter: metadata from settings.ini, requirements from the two .in files."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
settings = ConfigParser()
settings.read(HERE / "settings.ini", encoding="utf-8")
meta = settings["DEFAULT"]


def requirements(name: str) -> list[str]:
    """Requirement lines of a pip input file, comments dropped."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name=meta["lib_name"],
    version=meta["version"],
    description=meta["description"],
    license="Apache-2.0",
    author=meta["author"],
    python_requires=f">={meta['min_python']}",
    packages=find_packages(include=["smartrouter", "smartrouter.*", "serve", "serve.*", "bench"]),
    package_data={"smartrouter": ["py.typed", "warehouse/*.csv"], "serve": ["migrations/*.mako"]},
    install_requires=["numpy", "pyyaml", "click", "pydantic>=2", "pydantic-settings"],
    extras_require={"serve": requirements("requirements-serve.in"), "all": requirements("requirements.in")},
    entry_points={"console_scripts": ["smartrouter=smartrouter.cli:main"]},
)
