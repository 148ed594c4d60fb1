"""Write constraints.txt: the newest versions of everything that fit together.

Installs the project with all its extras, groups and build requirements, without constraints, into
a throw-away environment, and keeps the names and versions that came of it. Run it on the oldest
Python that is supported, so that the versions fit the newer ones too.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
HEAD = """\
# The exact versions that `make` installs: names and versions only, so any index serves.
# `make constraints` writes this file anew; see CONTRIBUTING.md.
"""
BUILD = ["editables"]  # what the build back end asks for when it makes an editable install


def main() -> None:
    """Make the environment, install, write the file, and say what changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        extras = ",".join(project["project"]["optional-dependencies"])
        wanted = ["--editable", f"{ROOT}[{extras}]", "--group", f"{ROOT}/pyproject.toml:dev"]
        needed = [*project["build-system"]["requires"], *BUILD]
        subprocess.run([*pip, "install", "--quiet", *wanted, *needed], check=True)
        freeze = [*pip, "freeze", "--all", "--exclude-editable", "--exclude", "setuptools"]
        frozen = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    lines = sorted(frozen.split(), key=str.lower)
    old = set(PINS.read_text().splitlines()) if PINS.exists() else set()
    PINS.write_text(HEAD + "".join(f"{line}\n" for line in lines))
    for line in lines:
        if line not in old:
            print(line)


if __name__ == "__main__":
    main()
