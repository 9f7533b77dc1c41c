"""The cluster that RAY_ADDRESS names, looked at before Ray waits two minutes for it."""

from __future__ import annotations

import os
import re
import socket

from uml_core.addresses import redacted
from uml_core.errors import UserError

SECONDS = 5.0  # that a Ray may take to answer
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[^\s:/@]+):(?P<port>\d{1,5})")
_UNSET = "`unset RAY_ADDRESS` takes this machine alone"


def address() -> str | None:
    """What RAY_ADDRESS names; None where the job starts a Ray of its own."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    return None if given in ("", "local") else given


def check(given: str) -> None:
    """Raises UserError, within seconds, where no Ray of ours can be reached at `given`."""
    if given == "auto":
        return  # Ray looks on this machine, and finds a Ray or none at once
    if "://" in given:
        if given.startswith("ray://"):
            what = "is an address of Ray's client, under which nothing trains"
        else:
            what = "is a url: jobs are sent to a dashboard with `uml submit --address`"
        raise UserError(f"RAY_ADDRESS={redacted(given)} {what}; write HEAD:6379, or {_UNSET}")
    found = _HOST_PORT.fullmatch(given)
    if found is None or int(found["port"]) > 65535:
        raise UserError(f"RAY_ADDRESS={given} is no address: write HEAD:6379, or {_UNSET}")
    if trouble := _trouble(found["host"].strip("[]"), int(found["port"])):
        raise UserError(
            f"RAY_ADDRESS={given}: {trouble}. Start that Ray (`ray start --head`), name the one "
            f"there is (HEAD:6379), or {_UNSET}"
        )


def _trouble(host: str, port: int) -> str:
    """Why there is no Ray at host:port; empty where there is one."""
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:  # a name that is not known, too
        return f"nothing answers there ({error.strerror or error})"
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", "", "false"):
        return ""  # its certificates are Ray's business
    import grpc

    with grpc.insecure_channel(f"{_bracketed(host)}:{port}", _NO_PROXY) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=SECONDS)
        except grpc.RpcError as error:
            kind = error.code()  # type: ignore[attr-defined]
            if kind == grpc.StatusCode.UNIMPLEMENTED:
                return "another service of Ray answers there, not the head's port (6379)"
            if kind in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return "what answers there is no Ray"
    return ""  # other refusals (a token, say) come from a Ray


_NO_PROXY = (("grpc.enable_http_proxy", 0),)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
