"""Facts about code, data and machine."""

import subprocess
from types import SimpleNamespace

from pipelines.reporting import provenance


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", folder, *identity, *args], check=True, capture_output=True)


def test_git_state_tells_commit_and_changes(tmp_path):
    file = tmp_path / "code.py"
    file.write_text("a = 1\n")
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "before")
    assert provenance.git_state(file) is None  # in the folder, and not part of the repository
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.git_state(file)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    file.write_text("a = 2\n")
    assert provenance.git_state(file) == {"commit": clean["commit"], "dirty": True}


def test_git_state_outside_of_a_repository(tmp_path):
    assert provenance.git_state(tmp_path / "code.py") is None


def index(*hashes):
    shards = [SimpleNamespace(keys=["a", "b"], sha256=h) for h in hashes]
    return SimpleNamespace(shards=shards)


def test_the_dataset_hash_depends_on_content_and_not_on_the_order_of_modalities():
    facts = provenance.data_facts({"image": [index("1", "2"), index("3")], "text": [index("4")]})
    assert facts["image"]["samples"] == 6
    assert facts["image"]["shards"] == 3
    whole = provenance.dataset_hash(facts)
    assert whole == provenance.dataset_hash(dict(reversed(facts.items())))
    changed = provenance.data_facts({"image": [index("1", "2"), index("x")], "text": [index("4")]})
    assert whole != provenance.dataset_hash(changed)
    swapped = {"image": facts["text"], "text": facts["image"]}
    assert whole != provenance.dataset_hash(swapped)


def test_environment_says_what_ran_where():
    facts = provenance.data_facts({"image": [index("1")]})
    env = provenance.environment(
        data=facts, placement={"workers": []}, guards={}, quarantined=0, forecast={"gain": 1}
    )
    assert env["host"]["cores"] >= 1
    assert env["host"]["memory_gb"] > 0.5
    assert {"python", "torch", "ray", "mlflow"} <= set(env["versions"])
    assert env["dataset_sha256"] == provenance.dataset_hash(facts)
    assert env["forecast"] == {"gain": 1}
    env["git"] = {"commit": "abc", "dirty": True}
    assert provenance.tags(env) == {
        "dataset.sha256": env["dataset_sha256"],
        "git.commit": "abc",
        "git.dirty": "true",
    }
