"""The files of cluster/ hold together, and each is what the tool that reads it accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"
CLOUDS = ("local", "aws", "gcp")
MANIFESTS = sorted((FOLDER / "kuberay").glob("*.yaml"))
CRDS = ROOT.parent / "shared" / "schemas" / "kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = "unpaired-multimodal-learner"
VERSION = PROJECT["version"]  # the one constant that image tags come from
PLACEHOLDERS = {
    *("REGISTRY", "BUCKET", "EFS_ID", "INSTANCE_PROFILE_ARN", "PROJECT", "FILESTORE_IP"),
    *("SERVICE_ACCOUNT", "STORAGE_CLASS", "SSH_USER", "SSH_KEY"),
    *("ADDRESS_OF_HEAD", "ADDRESS_OF_WORKER_1", "ADDRESS_OF_WORKER_2"),
}


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load(text(f"{name}.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


def everything() -> list[Path]:
    return [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path.suffix != ".pyc"]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in a manifest."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def ray_clusters() -> list[dict[str, Any]]:
    found = []
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "RayCluster":
                found.append(document["spec"])
            elif document["kind"] == "RayJob":
                found.append(document["spec"]["rayClusterSpec"])
    return found


# ------------------------------------------------------------------------------- together


def test_every_image_is_ours_with_the_tag_of_the_one_version():
    for path in everything():
        named = re.findall(rf"[\w./-]*{IMAGE}:[\w.-]+", path.read_text(encoding="utf-8"))
        wrong = set(named) - {f"REGISTRY/{IMAGE}:{VERSION}-{v}" for v in ("cpu", "cuda")}
        assert not wrong, f"{path}: {wrong}"
    assert f'image.version="{VERSION}"' in text("Dockerfile")
    foreign = {
        c["image"] for path in MANIFESTS for pod in pods(documents(path)) for c in pod["containers"]
    }
    assert foreign == {
        f"REGISTRY/{IMAGE}:{VERSION}-cpu",
        f"REGISTRY/{IMAGE}:{VERSION}-cuda",
        "postgres:16",
    }
    assert "postgres:16" in text("mlflow.sh")


def test_python_and_ray_are_those_of_the_project():
    import ray

    python = re.search(r"PYTHON_VERSION=([\d.]+)", text("Dockerfile"))[1]
    assert PROJECT["requires-python"].startswith(f">={python},")
    assert {spec["rayVersion"] for spec in ray_clusters()} == {ray.__version__}
    assert f"\nray=={ray.__version__} " in text("requirements.lock")
    assert "cluster" in PROJECT["optional-dependencies"] or "mlflow" in PROJECT


@pytest.mark.parametrize("name", CLOUDS)
def test_cluster_yamls_agree(name):
    made = config(name)
    head, worker = (
        " ".join(made["head_start_ray_commands"]),
        " ".join(made["worker_start_ray_commands"]),
    )
    assert "--port=6379 " in head and "--address=$RAY_HEAD_IP:6379 " in worker
    assert "--dashboard-host=127.0.0.1 --dashboard-port=8265" in head
    older = "RAY_enable_autoscaler_v2=0 " if name == "local" else ""  # see that file
    assert f"RAY_AUTH_MODE=token {older}ray start" in head
    assert "RAY_AUTH_MODE=token ray start" in worker
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in head
    assert made["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    options = made["docker"]["run_options"]
    assert "--volume /mnt/shared:/mnt/shared" in options
    assert any(o.startswith("--shm-size=") for o in options)
    assert any(o.startswith("--health-cmd=") for o in options)
    assert "mountpoint -q /mnt/shared" in " ".join(made["initialization_commands"])


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_have_an_on_demand_head_spot_workers_and_room_to_grow(name):
    made = config(name)
    types = made["available_node_types"]
    assert set(types) == {"head", "data", "train"} and made["head_node_type"] == "head"
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert [spot in types[t]["node_config"] for t in ("head", "data", "train")] == [
        False,
        True,
        True,
    ]
    for role, node in types.items():
        assert node["labels"] == {"uml-role": role}
    assert types["head"]["resources"]["CPU"] == 0
    assert types["train"]["resources"] == {"CPU": 8, "GPU": 1, "trainer": 1}
    assert all(types[t]["min_workers"] < types[t]["max_workers"] for t in ("data", "train"))
    assert sum(types[t]["max_workers"] for t in types) <= made["max_workers"]
    assert types["train"]["docker"]["worker_image"].endswith("-cuda")
    assert f"cluster/spot_notice.sh {name} " in " ".join(made["worker_start_ray_commands"])
    own, all_nodes = types["head"]["initialization_commands"], made["initialization_commands"]
    assert own[: len(all_nodes)] == all_nodes and "sh mlflow.sh" in own[-1]


def test_kubernetes_agrees_with_the_cluster_yamls():
    made = ray_clusters()
    assert len(made) == 2 and made[0] == made[1], "RayCluster and RayJob describe the same cluster"
    [spec] = made[:1]
    head, *workers = spec["headGroupSpec"], *spec["workerGroupSpecs"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "uml-ray-token"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    aws = config("aws")["available_node_types"]
    for group in workers:
        node = aws[group["groupName"]]
        assert (group["minReplicas"], group["maxReplicas"]) == (
            node["min_workers"],
            node["max_workers"],
        )
        assert group["rayStartParams"]["labels"] == f"uml-role={group['groupName']}"
        [container] = group["template"]["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert int(requests["cpu"]) == node["resources"]["CPU"]
        assert int(requests.get("nvidia.com/gpu", 0)) == node["resources"].get("GPU", 0)
        pool = "gpu" if "GPU" in node["resources"] else "cpu"
        assert group["template"]["spec"]["nodeSelector"] == {"uml.dev/pool": pool}
    for group in (head, *workers):
        pod = group["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"/mnt/shared": "shared", "/dev/shm": "shm"}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    ports = {p["containerPort"] for p in head["template"]["spec"]["containers"][0]["ports"]}
    exposed = set(map(int, re.search(r"EXPOSE ([\d ]+)", text("Dockerfile"))[1].split()))
    assert ports | {5000} == exposed


def test_placeholders_are_explained_where_they_stand_and_in_the_operations_page():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for path in everything():
        if path.suffix != ".yaml":
            continue
        body = path.read_text(encoding="utf-8")
        code = "\n".join(
            line.partition(" #")[0] for line in body.splitlines() if not line.startswith("#")
        )
        used = {name for name in PLACEHOLDERS if re.search(rf"\b{name}\b", code)}
        comment = "\n".join(line for line in body.splitlines() if line.startswith("#"))
        assert all(re.search(rf"\b{name}\b", comment) for name in used), f"{path}: {used}"
    assert all(f"`{name}`" in page for name in PLACEHOLDERS)


def test_filling_in_a_name_changes_nothing_else():
    """Names are replaced by hand or by sed: none may stand inside another word."""
    for path in everything():
        body = path.read_text(encoding="utf-8")
        for name in PLACEHOLDERS:
            inside = re.findall(rf"\w+{name}|{name}\w+", body)
            assert set(inside) <= PLACEHOLDERS, f"{path}: {inside}"


def test_what_the_jobs_run_exists():
    from pipelines import cli

    for path in MANIFESTS:
        body = path.read_text(encoding="utf-8")
        verbs = re.findall(r"pipelines\.(\w+) (\w+)", body) + re.findall(
            r"uml submit (\w+) (\w+)", body
        )
        assert all(v in cli.VERBS and recipe in cli.packaged() for v, recipe in verbs)
    [job] = documents(FOLDER / "kuberay" / "sweep.yaml")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert cli.main([*arguments[1:], "--dry-run"]) == 0


# ------------------------------------------------------------------- as the tools read them


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_accepts_the_cluster_yaml(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(config(name))
    validate_config(made)
    made["unknown"] = 1
    with pytest.raises(Exception, match="unknown"):
        validate_config(made)


FIELDS = {  # all that we use of KubeRay, so that a slip of the finger shows without the CRDs
    "RayCluster": {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    },
    "RayJob": {
        *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec"),
    },
}
GROUP = {"rayStartParams", "template"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_manifests_use_the_fields_that_we_know():
    kinds = []
    for path in MANIFESTS:
        for document in documents(path):
            assert {"apiVersion", "kind", "metadata", "spec"} == set(document)
            kinds.append(document["kind"])
            if document["kind"] in FIELDS:
                assert document["apiVersion"] == "ray.io/v1"
                assert set(document["spec"]) == FIELDS[document["kind"]]
    assert {"RayCluster", "RayJob", "Job", "Deployment", "StatefulSet"} <= set(kinds)
    for spec in ray_clusters():
        assert set(spec) == FIELDS["RayCluster"]
        assert set(spec["headGroupSpec"]) == GROUP
        assert all(set(group) == WORKERS for group in spec["workerGroupSpecs"])
        strings = [g["rayStartParams"] for g in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
        assert all(isinstance(v, str) for params in strings for v in params.values())


def policies() -> dict[str, dict[str, Any]]:
    """Label of the pods that a NetworkPolicy guards -> its spec."""
    found = {}
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "NetworkPolicy":
                (guarded,) = document["spec"]["podSelector"]["matchLabels"].values()
                found[guarded] = document["spec"]
    return found


def test_the_wall_lets_in_who_must_come_and_nobody_else():
    """A RayJob ends only where the operator, in a namespace of its own, reaches the dashboard."""
    walls = policies()
    assert set(walls) == {"head", "uml-postgres", "uml-mlflow"}
    operator = [
        rule
        for rule in walls["head"]["ingress"]
        for peer in rule["from"]
        if peer.get("namespaceSelector") == {}
        and peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    ]
    assert [rule["ports"] for rule in operator] == [[{"protocol": "TCP", "port": 8265}]]
    (rule,) = walls["uml-postgres"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "uml-mlflow"}}}]
    assert all("ipBlock" not in str(wall) for wall in walls.values())


def test_pods_may_write_the_disks_that_they_mount():
    """Volumes belong to root unless a pod names the group that its image's user is in."""
    for path in MANIFESTS:
        for document in documents(path):
            for pod in pods(document["spec"]):
                (image,) = {c["image"].rpartition("/")[2].split(":")[0] for c in pod["containers"]}
                mounts = [
                    m["mountPath"] for c in pod["containers"] for m in c.get("volumeMounts", ())
                ]
                if any(mount != "/dev/shm" for mount in mounts):
                    group = {IMAGE: 100, "postgres": 999}[image]
                    assert pod["securityContext"]["fsGroup"] == group, path.name


def test_a_job_made_anew_goes_on_where_it_stopped():
    (job,) = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "RayJob"]
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["entrypoint"].endswith(" --resume")


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_the_operators_definitions_accept_the_manifests(kind):
    path = CRDS / f"ray.io_{kind}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definitions are not beside the checkout ({CRDS})")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    [manifest] = documents(FOLDER / "kuberay" / f"{kind}.yaml")
    assert list(problems(schema, manifest["spec"], "spec")) == []
    manifest["spec"]["entryPoint"] = "x"
    assert list(problems(schema, manifest["spec"], "spec")) == ["spec.entryPoint: unknown"]


def problems(schema: dict[str, Any], value: Any, at: str) -> Iterator[str]:
    """What a structural schema of Kubernetes has against a value, unknown fields included."""
    if schema.get("x-kubernetes-int-or-string"):
        return
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    wanted = types.get(schema.get("type", ""))
    if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        yield f"{at}: {value!r} is no {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(schema["items"], item, f"{at}[{number}]")
    elif isinstance(value, dict):
        known, others = schema.get("properties"), schema.get("additionalProperties")
        yield from (
            f"{at}.{key}: missing" for key in schema.get("required", ()) if key not in value
        )
        for key, item in value.items():
            if known and key in known:
                yield from problems(known[key], item, f"{at}.{key}")
            elif isinstance(others, dict):
                yield from problems(others, item, f"{at}.{key}")
            elif known and not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{at}.{key}: unknown"


def instructions() -> list[tuple[str, str]]:
    """(instruction, its argument) of the Dockerfile, continued lines joined."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_keeps_the_rules():
    """hadolint where it is installed, and always the rules that matter here."""
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", str(FOLDER / "Dockerfile")], check=True)
    known = {
        *("ARG", "FROM", "LABEL", "SHELL", "RUN", "ENV", "USER", "WORKDIR", "COPY", "EXPOSE"),
        *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    made = instructions()
    assert {name for name, _ in made} == known  # upper case, none unknown, none forgotten
    values = {name: [v for n, v in made if n == name] for name in known}
    assert all(":" in image and not image.endswith(":latest") for image in values["FROM"])
    assert values["USER"][-1] == "ray"
    runs = " ".join(values["RUN"])
    assert runs.count("apt-get install") == runs.count("--no-install-recommends") == 1
    assert "rm -rf /var/lib/apt/lists/*" in runs and "PIP_NO_CACHE_DIR=1" in " ".join(values["ENV"])
    assert not any(re.search(r"(^|&& *)sudo |curl [^|]*\|", run) for run in values["RUN"])
    assert not re.search(r"(?i)(secret|password|token)=\S*[0-9a-f]{8}", text("Dockerfile"))
    assert all(v.startswith("[") for v in values["ENTRYPOINT"] + values["CMD"])
    assert "pipefail" in values["SHELL"][0]


def test_the_image_holds_what_the_dockerfile_copies_and_no_more():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for name, value in instructions():
        if name == "COPY":
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            copied |= set(sources)
    assert {source.split("/")[0] for source in copied} == let_in
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("script", ["mlflow.sh", "spot_notice.sh"])
def test_scripts_are_sound(script):
    subprocess.run(["sh", "-n", str(FOLDER / script)], check=True)
    assert (FOLDER / script).stat().st_mode & 0o111
    assert "set -eu" in text(script)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(FOLDER / script)], check=True)


def test_every_command_of_the_headers_exists():
    from pipelines import cli

    for path in everything():
        body = path.read_text(encoding="utf-8")
        named = re.findall(r"\bcluster/[\w./-]+\.(?:yaml|sh)\b|\bcluster/Dockerfile\b", body)
        assert all((ROOT / name).is_file() for name in named), f"{path}: {named}"
        verbs = re.findall(r"\buml ([a-z]+)\b", body)
        assert set(verbs) <= set(cli.VERBS), path
