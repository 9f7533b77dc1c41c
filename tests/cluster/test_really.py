"""`ray up cluster/local.yaml` over real sshd, MLflow on PostgreSQL, S3: run by `make test-cluster`.

Three hosts with sshd and nothing else become a cluster by the launcher; what differs from the file
as it is: addresses, login, no Docker (the package is installed already), small object stores.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hosts import BIN, ROOT, STORE_BYTES, Host, Hosts, why_not
from runs import consumed, planned, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
TUNNEL = "http://127.0.0.1:8265"


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Iterator[Hosts]:
    reason = why_not()
    missing = [tool for tool in ("ssh", "rsync", "/usr/sbin/sshd") if shutil.which(tool) is None]
    if reason or missing:
        # Asked for by name (`make test-cluster`): a skip would pass for a cluster that was tried.
        pytest.fail(reason or f"not installed: {', '.join(missing)} (openssh-server, rsync)")
    _say_versions()
    hosts = Hosts(tmp_path_factory.mktemp("really"))
    try:
        for name in ("head", "one", "two", "laptop"):
            hosts.add(name)
        _start_sshd(hosts)
        yield hosts
    finally:
        hosts.close()
        for left in Path.home().glob("ray_bootstrap_*"):  # of the launcher, on the head
            left.unlink()


def _say_versions() -> None:
    """What docs/clusters.md records of a run; hosts use this Python and its packages."""
    found = {name: metadata.version(name) for name in ("ray", "torch", "mlflow")}
    print({"python": platform.python_version(), **found})
    commands = [["ssh", "-V"], ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]]
    commands += [[str(bin_ / "postgres"), "--version"] for bin_ in POSTGRES[-1:]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        print(command[0], done.stdout.strip() or done.stderr.strip())


def _start_sshd(hosts: Hosts) -> None:
    key, own = hosts.folder / "key", hosts.folder / "host_key"
    for path in (key, own):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)
    for host in hosts.hosts.values():
        if host.name == "laptop":
            continue
        config = hosts.folder / f"sshd-{host.name}"
        config.write_text(
            f"ListenAddress {host.address}\nHostKey {own}\nAuthorizedKeysFile {key}.pub\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\n"
            "UsePAM no\nPidFile none\n"
        )
        log = hosts.folder / f"sshd-{host.name}.log"
        host.popen("/usr/sbin/sshd", "-D", "-e", "-f", str(config), log=log)


@pytest.fixture(scope="module")
def launched(net) -> Iterator[tuple[Hosts, Path]]:
    """The cluster that `ray up` makes of cluster/local.yaml, and a tunnel to its dashboard."""
    path = net.folder / "local.yaml"
    path.write_text(yaml.safe_dump(_for_these_hosts(net), sort_keys=False))
    laptop = net.hosts["laptop"]
    print("ray up:", laptop.run("ray", "up", str(path), "--yes", timeout=900).stdout[-1500:])
    head = net.hosts["head"].address
    ssh = ["ssh", "-i", str(net.folder / "key"), "-o", "StrictHostKeyChecking=no"]
    ssh += ["-o", f"UserKnownHostsFile={net.folder}/known", "-N", "-L", "8265:127.0.0.1:8265"]
    tunnel = laptop.popen(*ssh, f"root@{head}", log=net.folder / "tunnel.log")
    wait_until(lambda: _nodes(net, path) == 3)
    try:
        yield net, path
    finally:
        tunnel.kill()
        said = laptop.run("ray", "down", str(path), "--yes", timeout=600)
        print("ray down:", (said.stdout + said.stderr)[-1500:])
        assert _raylets(net.hosts["head"]) == 0
        # Without Docker the launcher stops Ray on the head; the others end when they miss it.
        asked = time.monotonic()
        wait_until(lambda: not any(_raylets(net.hosts[n]) for n in ("one", "two")))
        print(f"no Ray on any host {time.monotonic() - asked:.0f} s after ray down")


def _for_these_hosts(net: Hosts) -> dict:
    text = (ROOT / "cluster" / "local.yaml").read_text()
    for name, host in (("HEAD", "head"), ("WORKER_1", "one"), ("WORKER_2", "two")):
        text = text.replace(f"ADDRESS_OF_{name}", net.hosts[host].address)
    text = text.replace("SSH_USER", "root").replace("SSH_KEY", str(net.folder / "key"))
    made = yaml.safe_load(text)
    del made["docker"]
    made["file_mounts"] = {f"{Path.home()}/.ray/auth_token": str(net.folder / "auth_token")}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        made[key] = [
            re.sub(r"\bray (start|stop)", rf"{BIN}/ray \1", line).replace(
                "--disable-usage-stats",
                f"--disable-usage-stats --object-store-memory={STORE_BYTES}",
            )
            for line in made[key]
        ]
    return made


def _nodes(net: Hosts, path: Path) -> int:
    said = net.hosts["laptop"].run(
        "ray", "exec", str(path), f"RAY_AUTH_MODE=token {BIN}/ray status", check=False
    )
    active = said.stdout.partition("Active:")[2].partition("Pending:")[0]
    time.sleep(2)
    return sum(int(n) for n in re.findall(r"^ (\d+) ", active, re.MULTILINE))


def _raylets(host: Host) -> int:
    return int(host.run("pgrep", "-c", "raylet", check=False).stdout or 0)


def submit(net: Hosts, *argv: str, env: dict[str, str] | None = None) -> str:
    done = net.hosts["laptop"].run(
        str(BIN / "python"), "-m", "pipelines.submit", *argv, "--address", TUNNEL,
        env={"PYTHONPATH": str(ROOT), **(env or {})}, check=False, timeout=1200,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-5000:]
    return said


def test_the_launcher_makes_a_cluster_that_trains(launched, fault_recipe):
    net, path = launched
    said = submit(net, "train", fault_recipe, "--out", "/mnt/shared/runs/one")
    out = net.shared / "runs" / "one"
    assert consumed(out) == planned(fault_recipe)
    facts = json.loads((out / "environment.json").read_text())
    where = {place["node"] for place in facts["placement"]["workers"]}
    assert where <= {net.hosts["one"].address, net.hosts["two"].address}  # the head has no CPU
    assert "test accuracy of image" in said and "is not encrypted" not in said
    shown = net.hosts["laptop"].run("ray", "exec", str(path), "hostname").stdout
    assert "head" in shown


# ---------------------------------------------------------------------- MLflow, PostgreSQL


@pytest.fixture(scope="module")
def mlflow(launched) -> Iterator[tuple[Hosts, str, list[str]]]:
    """MLflow on the head, its backend PostgreSQL there: (hosts, url, psql command)."""
    net, _ = launched
    if not POSTGRES:
        pytest.fail("PostgreSQL is not installed (Debian: postgresql)")
    head, bin_ = net.hosts["head"], POSTGRES[-1]
    folder = Path(tempfile.mkdtemp(prefix="uml-postgres-", dir="/tmp"))
    shutil.chown(folder, "postgres", "postgres")
    as_postgres = ["runuser", "-u", "postgres", "--"]
    head.run(*as_postgres, str(bin_ / "initdb"), "-D", f"{folder}/data", "-A", "trust", cwd=folder)
    server = [str(bin_ / "postgres"), "-D", f"{folder}/data", "-k", str(folder)]
    database = head.popen(
        *as_postgres, *server, "-c", "listen_addresses=127.0.0.1", log=net.folder / "postgres.log"
    )
    psql = [*as_postgres, str(bin_ / "psql"), "-h", "127.0.0.1", "-At", "mlflow", "-c"]
    create = [*as_postgres, str(bin_ / "createdb"), "-h", "127.0.0.1", "mlflow"]
    wait_until(lambda: head.run(*create, check=False, cwd=folder).returncode == 0)
    url = f"http://{head.address}:5000"
    server = head.popen(
        str(BIN / "mlflow"), "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1",
        "--backend-store-uri", "postgresql+psycopg2://postgres@127.0.0.1/mlflow",
        "--artifacts-destination", "/mnt/shared/mlflow", log=net.folder / "mlflow.log",
    )  # fmt: skip
    try:
        wait_until(lambda: _healthy(url))
        yield net, url, psql
    finally:
        server.kill()
        database.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _healthy(url: str) -> bool:
    time.sleep(0.5)
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:
        return False


def test_two_nodes_log_to_one_mlflow_at_once(mlflow, fault_recipe):
    """A sweep whose driver is on the head, and a run whose driver is on a worker, together."""
    net, url, psql = mlflow
    raw = yaml.safe_load(Path(fault_recipe).read_text())
    raw |= {"name": "beside", "trace": False}
    beside = net.folder / "beside.yaml"
    beside.write_text(yaml.safe_dump(raw))
    other = net.hosts["one"].popen(
        str(BIN / "python"), "-m", "pipelines.train", str(beside), "train.steps=400",
        "--out", "/mnt/shared/runs/beside", log=net.folder / "beside.log",
        env={"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": url,
             "RAY_ADDRESS": f"{net.hosts['head'].address}:6379"},
    )  # fmt: skip
    swept = ["sweep", fault_recipe, "--space", "modality_ratio", "sweep.trials=4", "seeds=[0,1]"]
    swept += ["sweep.confirm=2", "train.steps=60", "train.workers=1", "trace=false"]
    said = submit(net, *swept, "--out", "/mnt/shared/runs/sweep")
    assert other.wait(600) == 0, (net.folder / "beside.log").read_text()[-3000:]
    assert url.replace(net.hosts["head"].address, "127.0.0.1") in said

    def ask(query: str) -> list[str]:
        return net.hosts["head"].run(*psql, query).stdout.split()

    runs = ask("select e.name, r.status from runs r join experiments e using (experiment_id)")
    names = {line.partition("|")[0] for line in runs}
    assert {"faults", "beside"} <= names
    assert all(line.endswith("|FINISHED") for line in runs), runs
    assert sum(line.startswith("faults|") for line in runs) >= 6  # the sweep, trials, baselines
    spans = ask(
        "select e.name, min(m.timestamp), max(m.timestamp) from metrics m "
        "join runs r using (run_uuid) join experiments e using (experiment_id) group by 1"
    )
    when = {name: (int(a), int(b)) for name, a, b in (line.split("|") for line in spans)}
    (a, b), (c, d) = when["faults"], when["beside"]
    assert max(a, c) < min(b, d), f"not at once: {when}"


# ------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def s3(launched) -> Iterator[tuple[Hosts, dict[str, str]]]:
    """A real S3 server on the laptop: (hosts, what of the environment reaches it)."""
    net, _ = launched
    laptop = net.hosts["laptop"]
    command = [sys.executable, "-m", "moto.server", "-H", laptop.address, "-p", "9000"]
    server = laptop.popen(*command, log=net.folder / "moto.log")
    url = f"http://{laptop.address}:9000"
    env = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "sesame-open"}
    wait_until(lambda: _put(url, "bucket", b""))
    try:
        yield net, {**env, "AWS_EC2_METADATA_DISABLED": "true"}
    finally:
        server.kill()


def _put(url: str, path: str, data: bytes) -> bool:
    time.sleep(0.2)
    # As a form, which is what urllib says of any data, the server would look for fields in it.
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{url}/{path}", data, kind, method="PUT")
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except OSError:
        return False
    return True


def test_data_comes_from_s3_and_checkpoints_go_there(s3, fault_recipe, tiny_data):
    net, env = s3
    url = env["AWS_ENDPOINT_URL"]
    for file in tiny_data.iterdir():
        assert _put(url, f"bucket/tiny/{file.name}", file.read_bytes())
    argv = ["train", fault_recipe, "data_root=s3://bucket/tiny", "train.storage=s3://bucket/kept"]
    keys = ["--env", "AWS_ACCESS_KEY_ID", "--env", "AWS_SECRET_ACCESS_KEY"]
    out = net.shared / "runs" / "s3"
    to = ["--out", "/mnt/shared/runs/s3"]
    said = submit(net, *argv, "train.steps=100", *keys, *to, env=env)
    assert not (out / "train").exists()
    listing = urllib.request.urlopen(f"{url}/bucket?prefix=kept/").read().decode()
    assert len(set(re.findall(r"checkpoint_\d{8}_\w+/state\.pt", listing))) == 2
    said += submit(net, *argv, "train.steps=160", "--resume", *keys, *to, env=env)
    assert "Going on from step 100" in said and "sesame-open" not in said
    assert consumed(out) == planned(fault_recipe)
