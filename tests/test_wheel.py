"""What a wheel carries: the package, its data, and the configurations."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from setuptools import find_packages

from sta_lightning.cli.shipped import names
from tests.conftest import REPOSITORY


def test_every_package_is_named() -> None:
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(told) == {*find_packages(str(REPOSITORY), include=["sta_lightning*"]), "sta_lightning.configs"}


def test_the_configurations_are_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs", "sta_lightning"):
        (source / name).symlink_to(REPOSITORY / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"sta_lightning/configs/{name}.yaml" for name in names()} <= set(inside)
    wheel_only = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(wheel_only)
    code = "from sta_lightning.cli.main import main; raise SystemExit(main(['configs']))"
    environment = {"PYTHONPATH": str(wheel_only), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(names())
