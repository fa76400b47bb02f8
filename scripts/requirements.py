"""Write requirements.txt: the runtime set of constraints.txt, with the hashes of its files.

    python -m scripts.requirements

It takes `uv` (`pip install uv`), which asks the registry that it is configured with for the hashes,
and an environment in which the package is installed: what it needs at run time is read off there.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, REQUIREMENTS = ROOT / "constraints.txt", ROOT / "requirements.txt"
HEAD = """\
# The runtime set of constraints.txt with the hashes of its files, written by `python -m scripts.requirements`.
# pip install --require-hashes -r requirements.txt && pip install --no-deps --no-build-isolation .
"""


def pins(path: Path) -> dict[str, str]:
    """Exact versions in a file of requirements, by name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def runtime(name: str = "sta-lightning") -> set[str]:
    """What an installed distribution needs at run time, without itself, by name."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, "")]
    while waiting:
        if (item := waiting.pop()) in found:
            continue
        found.add(item)
        for line in distribution(item[0]).requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": item[1]}):
                waiting += [(canonicalize_name(need.name), extra) for extra in ("", *need.extras)]
    return {needed for needed, _ in found} - {name}


def main() -> None:
    """Write the file."""
    known = pins(CONSTRAINTS)
    lines = "".join(f"{name}=={known[name]}\n" for name in sorted(runtime()))
    done = subprocess.run(
        [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-deps",
            "--no-header",
            "--no-annotate",
            "--generate-hashes",
            "-",
        ],
        input=lines,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    REQUIREMENTS.write_text(HEAD + done.stdout, encoding="utf-8")


if __name__ == "__main__":
    main()
