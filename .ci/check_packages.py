"""Checks the packages of requirements.lock, without a network: their hashes, licences and known advisories.

    python .ci/check_packages.py        `make audit` asks the Python Packaging Advisory Database for newer advisories

- Each package has hashes, so that nothing else can be installed in its place.
- Each licence is one of `_ALLOWED`, by what the installed package says of itself: an expression of SPDX, else its classifiers.
- No version is one for which `.ci/advisories.txt` has an advisory. That list is kept by hand: it finds a lock that goes back.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).resolve().parents[1]
_ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    }
)
"""Licences that let a program be used and passed on without its source; of MPL-2.0 only changed files need theirs."""
_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "dfsg approved": "",
    "mit license": "MIT",
    "mit style": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""Other names of the same, in classifiers and in the field License."""
_LICENCE_CHARACTERS_MAX = 60
"""A longer field License is the licence's whole text."""


def locked(lock: str) -> dict[str, list[tuple[str, bool]]]:
    """Returns the versions of each package in a lock file, each with whether it has hashes."""
    packages: dict[str, list[tuple[str, bool]]] = {}
    for name, version, rest in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)((?:.*\\\n)*.*)$", lock, re.MULTILINE):
        packages.setdefault(canonicalize_name(name), []).append((version, "--hash=sha256:" in rest))
    return packages


def licences(metadata: importlib.metadata.PackageMetadata) -> str:
    """Returns a package's licence as an expression of SPDX; an empty text if it names none."""
    if metadata.get("License-Expression"):
        return str(metadata["License-Expression"])
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    found = [_NAMES.get(name.lower(), name) for name in (text.rpartition("::")[2].strip() for text in classifiers)]
    if any(found):
        return " AND ".join(sorted({name for name in found if name}))
    field = str(metadata.get("License") or "").strip()
    return _NAMES.get(field.lower(), field) if len(field) <= _LICENCE_CHARACTERS_MAX else ""


def is_allowed(expression: str) -> bool:
    """Returns whether an expression of SPDX can be met with the licences allowed. Empty, or not understood: no."""
    words = re.findall(r"\(|\)|[^\s()]+", expression)
    position = 0

    def term() -> bool:
        nonlocal position
        word = words[position]
        position += 1
        if word != "(":
            return word in _ALLOWED
        value = disjunction()
        position += 1  # the closing parenthesis
        return value

    def conjunction() -> bool:
        nonlocal position
        value = term()
        while words[position : position + 1] == ["AND"]:
            position += 1
            value = term() and value
        return value

    def disjunction() -> bool:
        nonlocal position
        value = conjunction()
        while words[position : position + 1] == ["OR"]:
            position += 1
            value = conjunction() or value
        return value

    try:
        return disjunction() and position == len(words)
    except IndexError:
        return False


def advisories(text: str) -> Iterator[tuple[str, SpecifierSet, str]]:
    """Yields the package, the versions and the name of each advisory; a line is `package<1.2  CVE-…  what`."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            affected, name = line.split()[:2]
            package = re.match(r"[A-Za-z0-9._-]+", affected)
            assert package is not None, line
            yield canonicalize_name(package[0]), SpecifierSet(affected[len(package[0]) :], prereleases=True), name


def complaints(lock: str, known: str) -> list[str]:
    """Returns what is wrong with a lock file, given the list of advisories."""
    packages, found = locked(lock), []
    installed = {canonicalize_name(package.name): package for package in importlib.metadata.distributions()}
    for name, versions in packages.items():
        found += [f"{name} {version}: requirements.lock has no hash" for version, has_hash in versions if not has_hash]
        if name in installed:  # others are for another system or version of Python
            expression = licences(installed[name].metadata)
            if not is_allowed(expression):
                found.append(f"{name}: the licence {expression or '(none named)'!r} is none of those allowed")
    for name, affected, advisory in advisories(known):
        found += [f"{name} {version}: {advisory}" for version, _ in packages.get(name, []) if version in affected]
    return found


def main() -> int:
    found = complaints((_ROOT / "requirements.lock").read_text(), (_ROOT / ".ci" / "advisories.txt").read_text())
    sys.stderr.writelines(f"requirements.lock: {complaint}\n" for complaint in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
