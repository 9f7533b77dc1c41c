"""Hosts of a real cluster on one machine: own address, processes, /tmp/ray and shared memory each.

A host is a network, PID, mount and UTS namespace behind one bridge, so that a `ray stop` on one
sees its own processes only, and killing its first process is pulling its plug. Their disks are
one and the same but for /tmp/ray and ~/.ray; /mnt/shared is what the documents call so.

Needs root and iproute2 (`why_not`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runs import descendants, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PORT, DASHBOARD = 6379, 8265
STORE_BYTES = 200_000_000
_FIRST = """
hostname {name}
ip link set lo up
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
printf '127.0.0.1 localhost\n{address} {name}\n' > /tmp/ray/hosts
mount --bind /tmp/ray/hosts /etc/hosts
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/shared ~/.ray /run/sshd
mount --bind {shared} /mnt/shared
mount -t tmpfs tmpfs ~/.ray
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /usr/local/sbin
ln -s {ray} /usr/local/sbin/ray
sleep infinity &
wait
"""


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (iproute2, util-linux)"
    probe = f"uml-probe-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    tried = subprocess.run(
        ["ip", "netns", "exec", probe, "unshare", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
    )
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return f"no PID namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host; `start` again after `kill` brings it back empty, as a machine that was replaced."""

    def __init__(
        self, name: str, address: str, network: str, env: Mapping[str, str], shared: Path
    ) -> None:
        self.name, self.address, self.network, self.shared = name, address, network, shared
        self.env = dict(env)
        self._outer: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(self) -> None:
        """Its first process, and with it the namespaces."""
        inside = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]
        script = _FIRST.format(
            name=self.name, address=self.address, shared=self.shared, ray=BIN / "ray"
        )
        outer = subprocess.Popen(
            ["ip", "netns", "exec", self.network, *inside, "bash", "-c", script],
            stderr=subprocess.DEVNULL,  # some versions of unshare complain about --kill-child
        )
        self._outer = outer
        wait_until(lambda: "sleep" in map(_name, descendants(outer.pid)))  # it has all mounts
        [self._first] = [pid for pid in descendants(outer.pid) if _parent(pid) == outer.pid]

    def kill(self) -> None:
        """Pulls the plug: every process of the host is gone at once."""
        if self._outer is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._outer.wait()
        self._outer = None

    def command(self, *command: str, cwd: Path = ROOT) -> list[str]:
        """The command line that runs `command` on this host."""
        inside = ["nsenter", "-t", str(self._first), "-n", "-p", "-m", "-u"]
        return [*inside, "env", "-C", str(cwd), *command]

    def popen(self, *command: str, log: Path, env: Mapping[str, str] | None = None, **how: object):
        """Starts `command` on this host; its output goes to `log`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.command(*command),
                env={**self.env, **(env or {})},
                stdout=file,
                stderr=file,
                **how,
            )

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 900,  # a hung command; a busy machine is let off
        cwd: Path = ROOT,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` on this host to its end."""
        done = subprocess.run(
            self.command(*command, cwd=cwd),
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done


class Hosts:
    """Hosts behind one bridge, and the token of the cluster that they form."""

    def __init__(self, folder: Path) -> None:
        number = 64 + os.getpid() % 128
        self.folder, self._net = folder, f"10.77.{number}"
        self._bridge = f"umlb{number}"
        self.token = secrets.token_hex(32)
        self._token_file = folder / "auth_token"
        self._token_file.write_text(self.token)
        self._token_file.chmod(0o600)
        self.home = folder / "home"
        self.home.mkdir()
        self.shared = folder / "shared"  # /mnt/shared on every host
        self.shared.mkdir()
        self.gateway = f"{self._net}.254"  # this process, as the hosts see it
        self.hosts: dict[str, Host] = {}
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.254/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def env(self) -> dict[str, str]:
        """The environment of every command: this Python, a home of its own, the token."""
        return {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def add(self, name: str) -> Host:
        """One more host, started."""
        number = len(self.hosts) + 1
        network, link = f"{self._bridge}-{number}", f"{self._bridge}v{number}"
        _ip("netns", "add", network)
        host = Host(name, f"{self._net}.{number}", network, self.env(), self.shared)
        self.hosts[name] = host
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", network)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", network, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", network, "link", "set", "eth0", "up")
        host.start()
        return host

    def close(self) -> None:
        """Ends all hosts and removes what they were made of."""
        for host in self.hosts.values():
            host.kill()
            subprocess.run(["ip", "netns", "del", host.network], check=False)
        subprocess.run(["ip", "link", "del", self._bridge], check=False)

    # ------------------------------------------------------------------------------- Ray

    def start_head(self, host: Host, *, cpus: int = 2, labels: str = "uml-role=data") -> None:
        """`ray start --head`: no trainers here, read and decode tasks only."""
        host.run(
            "ray", "start", "--head",
            f"--node-ip-address={host.address}", f"--port={PORT}",
            f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD}",
            f"--num-cpus={cpus}", f"--labels={labels}",
            f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats",
        )  # fmt: skip

    def start_worker(
        self, host: Host, head: Host, *, cpus: int = 1, labels: str = "uml-role=train"
    ) -> None:
        """`ray start` of a worker node, with room for one trainer."""
        host.run(
            "ray", "start", f"--address={head.address}:{PORT}",
            f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--labels={labels}",
            '--resources={"trainer": 1}',
            f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats",
        )  # fmt: skip

    def get(self, head: Host, path: str) -> Any:
        """What the dashboard answers, with the token."""
        request = urllib.request.Request(
            f"http://{head.address}:{DASHBOARD}{path}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def ask(self, head: Host, path: str) -> list[dict[str, Any]]:
        """A list of the state API."""
        found: list[dict[str, Any]] = self.get(head, path)["data"]["result"]["result"]
        return found

    def nodes(self, head: Host) -> set[str]:
        """Addresses of the nodes that are alive."""
        try:
            found = self.ask(head, "/api/v0/nodes")
        except (OSError, ValueError, KeyError):
            return set()
        return {node["node_ip"] for node in found if node["state"] == "ALIVE"}

    def is_alive(self, head: Host, host: Host) -> bool:
        """Whether Ray knows a node on `host` that is alive."""
        return host.address in self.nodes(head)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # it has just ended


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def cluster(
    folder: Path, workers: Sequence[str], *, prepare: Callable[[Hosts], None] = lambda hosts: None
) -> Iterator[tuple[Hosts, Host]]:
    """A head and workers by `ray start`, and one more host, `laptop`, with no Ray on it."""
    hosts = Hosts(folder)
    try:
        head = hosts.add("head")
        for name in workers:
            hosts.add(name)
        hosts.add("laptop")
        prepare(hosts)
        hosts.start_head(head)
        for name in workers:
            hosts.start_worker(hosts.hosts[name], head)
        wanted = {head.address, *(hosts.hosts[name].address for name in workers)}
        wait_until(lambda: hosts.nodes(head) == wanted, lambda: hosts.nodes(head))
        yield hosts, head
    finally:
        hosts.close()
