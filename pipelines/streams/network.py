"""The proxies through which urls are reached, as the environment names them."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from uml_core.addresses import redacted

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def proxies() -> tuple[tuple[str, str], ...]:
    """(scheme, proxy) pairs and ``no``, in order. Settles what only some libraries understand:

    ``all_proxy`` counts for http and https where they have none of their own, and a proxy without
    a scheme is an http proxy.
    """
    found = {name: value for name, value in getproxies_environment().items() if value.strip()}
    for scheme in ("http", "https"):
        proxy = found.get(scheme) or found.get("all")
        if proxy and "://" not in proxy:
            proxy = f"http://{proxy}"
        if proxy and os.environ.get(f"{scheme}_proxy") != proxy:
            os.environ[f"{scheme}_proxy"] = proxy  # goes before the one in capitals
        if proxy:
            found[scheme] = proxy
    return tuple(sorted(found.items()))


def proxy_of(url: str) -> str | None:
    """The proxy that `url` is reached through; None: directly."""
    found = dict(proxies())
    parts = urlsplit(url)
    scheme = parts.scheme if parts.scheme in ("http", "https") else "https"
    host = parts.hostname or ""
    if scheme not in found or proxy_bypass_environment(host, found):
        return None
    return found[scheme]


def way(url: str) -> str:
    """For messages: the proxy of `url` and who named it; empty without one."""
    try:
        proxy = proxy_of(url)
    except ValueError:  # no legal url
        return ""
    if proxy is None:
        return ""
    names = ("http_proxy", "https_proxy", "all_proxy")
    named = [name for name in names if os.environ.get(name) or os.environ.get(name.upper())]
    return f", the proxy {redacted(proxy)} (of {', '.join(named)})"


def spare_loopback() -> None:
    """Lets this process and those it starts reach each other without a proxy."""
    if not proxies():
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" not in names:
        value = ",".join([*names, *(name for name in LOOPBACK if name not in names)])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = value
