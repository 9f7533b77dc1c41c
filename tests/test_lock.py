"""The locks name one exact, hashed set of packages for set-up, image and jobs alike."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from pipelines.running import upload
from uml_core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"set-up": ROOT / "requirements.lock", "image": ROOT / "cluster" / "requirements.lock"}


def pins(path: Path) -> set[Requirement]:
    """Requirements of a lock, hashes left out."""
    text = path.read_text(encoding="utf-8")
    return {Requirement(line.rstrip("\\ ")) for line in text.splitlines() if line[:1].isalnum()}


@pytest.mark.parametrize("which", LOCKS)
def test_every_package_has_one_exact_version_with_hashes(which: str) -> None:
    text = LOCKS[which].read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) > 100
    for block in blocks:
        assert re.match(r"[a-z0-9.-]+(\[[a-z,-]+\])?==[^ ]+ ", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_image_and_jobs_install_what_set_up_installs() -> None:
    tried, image = pins(LOCKS["set-up"]), pins(LOCKS["image"])
    assert {str(pin) for pin in image} <= {str(pin) for pin in tried}
    jobs = {str(Requirement(pin)) for pin in upload.locked()}
    assert jobs == {str(pin) for pin in image if pin.name != "ray"}
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    assert "--require-hashes -r cluster/requirements.lock" in dockerfile
    assert not re.search(r"pip install [^|&]*[a-z]==[0-9]", dockerfile)


def test_the_lock_holds_all_that_pyproject_asks_for_within_its_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    image = ("optuna", "cluster", "encoders")
    for which, names in (("image", image), ("set-up", (*image, "dev"))):
        asked = project["dependencies"] + [need for name in names for need in extras[name]]
        versions: dict[str, set[str]] = {}
        for pin in pins(LOCKS[which]):
            versions.setdefault(pin.name, set()).update(s.version for s in pin.specifier)
        for need in map(Requirement, asked):
            if need.name != project["name"]:
                found = versions[need.name.lower()]
                assert all(need.specifier.contains(Version(v)) for v in found), (which, need)


def test_a_lock_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--pip"):
        upload.locked(tmp_path / "no.lock")
