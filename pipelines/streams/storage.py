"""Where bytes come from: local files, http(s) through fsspec, s3 and gs through pyarrow.fs.

Everything above this file knows two things only: a url and a range of bytes in it. A remote range
is asked for again after a dropped connection, with growing pauses; what is certain (no such file,
not allowed) is not.
"""

from __future__ import annotations

import glob
import io
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pipelines.streams import access, foreign, network
from pipelines.streams.braces import names_in_braces
from uml_core import addresses
from uml_core.addresses import folder_of, is_remote, name_of
from uml_core.errors import RunError, UserError, near

ATTEMPTS = 6  # pauses of 0.2, 0.4 ... 3.2 s: half a minute with the time-outs of the attempts
STREAM_BLOCK = 8 << 20
SPAN_BYTES = 8 << 20  # neighbouring ranges are read as one up to this size ...
REMOTE_GAP, LOCAL_GAP = 256 << 10, 4 << 10  # ... if the unwanted bytes between them are few
REQUESTS = 8  # remote requests in flight per call
LOOKS = 32  # files asked for their size at a time
_CERTAIN = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")

T = TypeVar("T")


@dataclass(frozen=True)
class Stat:
    """Size in bytes and a stamp that changes with the content.

    stamp    times of content and inode of a local file, else ETag or mtime; "" where a server
             tells neither
    changed  when the content was last written, seconds since 1970 by the clock of the store; None
             where it does not say
    """

    size: int
    stamp: str
    changed: float | None = None


def stat(url: str) -> Stat:
    """Size and stamp. Raises FileNotFoundError where nothing is there."""
    if not is_remote(url):
        found = os.stat(url)
        # The second changes with every write, also where a program sets the first back.
        stamp = f"{found.st_mtime_ns}-{found.st_ctime_ns}"
        return Stat(found.st_size, stamp, max(found.st_mtime, found.st_ctime))
    if url.startswith("http"):
        sent = addresses.on_the_wire(url)
        info = _retry(lambda: _http().info(sent), url)
        stamp = info.get("ETag") or info.get("Last-Modified") or ""
        size = info["size"]
        if size is None:
            size = len(_retry(lambda: _http().cat_file(sent), url))
        return Stat(size, stamp, _http_time(info.get("Last-Modified")))
    system, path = _arrow(url)
    found = _retry(lambda: system.get_file_info(path), url)
    if not found.is_file:
        raise FileNotFoundError(url)
    if found.mtime_ns is None:
        return Stat(found.size, "")
    return Stat(found.size, str(found.mtime_ns), found.mtime_ns / 1e9)


def _http_time(told: str | None) -> float | None:
    try:
        return None if told is None else parsedate_to_datetime(told).timestamp()
    except ValueError:
        return None


def open_stream(url: str) -> BinaryIO:
    """A binary file for one sequential pass; remote ones survive dropped connections."""
    if not is_remote(url):
        return open(url, "rb")
    return io.BufferedReader(_RangeStream(url, stat(url).size), buffer_size=1 << 20)


def read_all(url: str, limit: int) -> bytes:
    """The whole file. Raises FileNotFoundError, or UserError above `limit` bytes."""
    size = stat(url).size
    if size > limit:
        raise UserError(f"{url} has {size} bytes; at most {limit} are read")
    return read_ranges(url, [0], [size])[0]


def read_beside(url: str, limit: int) -> bytes | None:
    """The whole file, None where nothing is there. For files that may lie beside shards.

    A store that does not let its folders be listed answers "not allowed" for what is not there,
    and so does one whose urls are signed one by one.
    """
    try:
        return read_all(url, limit)
    except FileNotFoundError:
        return None
    except access.NotAllowedError:
        if is_remote(url):
            return None
        raise


def read_ranges(url: str, offsets: ArrayLike, sizes: ArrayLike) -> list[bytes]:
    """The bytes [offset, offset + size) for each pair, in the order given.

    One open (or a few requests) serves them all. Where the file ends early the answer is shorter
    than asked. Raises RunError when the file is gone or the connection stays broken.
    """
    remote = is_remote(url)
    offs, lens = np.asarray(offsets, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    spans = _spans(offs, lens, REMOTE_GAP if remote else LOCAL_GAP)
    out: list[bytes] = [b""] * len(offs)

    def fill(span: np.ndarray, read: Callable[[int, int], bytes]) -> None:
        start = int(offs[span].min())
        data = read(start, int((offs[span] + lens[span]).max()) - start)
        for i in span:
            at = int(offs[i]) - start
            out[i] = data[at : at + int(lens[i])]

    try:
        if not remote:
            fd = os.open(url, os.O_RDONLY)
            try:
                for span in spans:
                    fill(span, lambda start, size: _pread(fd, start, size))
            finally:
                os.close(fd)
        elif len(spans) == 1:
            fill(spans[0], lambda start, size: _remote_range(url, start, size))
        else:
            with ThreadPoolExecutor(REQUESTS) as pool:
                jobs = [
                    pool.submit(fill, span, lambda start, size: _remote_range(url, start, size))
                    for span in spans
                ]
                for job in jobs:
                    job.result()
    except FileNotFoundError as error:
        raise RunError(
            f"{url} has gone: put it back and run the same command with --resume"
        ) from error
    return out


def expand(pattern: str | Sequence[str], root: str = ".") -> list[str]:
    """Patterns -> absolute paths and urls of existing shards, sorted within a glob, each once.

    A pattern is a path, a glob, a brace range ({000000..000012}), an s3://, gs:// or http(s)://
    url with the same, or a list of these. Relative patterns resolve against `root` (a folder or a
    url). Raises UserError with all that is missing and near names from the same folder.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    problems: list[str] = []
    urls: dict[str, None] = {}
    for found in _at_once(lambda item: _expand_one(item, root), patterns):
        if isinstance(found, UserError):
            problems += found.problems
        else:
            urls.update(dict.fromkeys(found))
    if problems:
        raise UserError(problems)
    if not urls:
        raise UserError("no shard is named")
    return list(urls)


def _at_once(look: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """`look` of every name, in their order: over a network each is a round trip."""
    if len(names) == 1:
        return [look(names[0])]
    with ThreadPoolExecutor(LOOKS) as pool:
        return list(pool.map(look, names))


def _expand_one(pattern: str, root: str) -> list[str] | UserError:
    """What one pattern stands for, or what is wrong with it."""
    try:
        return _all_of(pattern, root)
    except UserError as error:
        return error


def _all_of(pattern: str, root: str) -> list[str]:
    literal, rest, query = split_pattern(pattern, root)
    names = names_in_braces(rest, pattern) if "{" in rest else [rest]
    found, missing = [], []
    looks = _at_once(lambda name: _hits(literal, name, query), names)
    for name, hits in zip(names, looks, strict=True):
        found += hits
        if not hits:
            missing.append(literal + name + query)
    if not found and (meant := addresses.misread(pattern)):
        raise UserError(meant)
    if missing:
        more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
        raise UserError([_missing(name) + more for name in missing[:3]])
    return found


def split_pattern(pattern: str, root: str) -> tuple[str, str, str]:
    """(what is meant literally, the rest, in which braces and wildcards mean something, a query).

    A root is literal, and so is as much of a path as exists: folders may have [ ] { } in their
    names. Raises UserError for urls that cannot be read.
    """
    place = addresses.absolute(pattern, root)
    if problem := addresses.problem_of(place) or addresses.problem_of(pattern):
        raise UserError(problem)
    path, query = addresses.split_query(place)
    if is_remote(path):
        if addresses.is_url(pattern):
            literal = path.find("/", path.index("://") + 3) + 1 or len(path)
        else:
            literal = len(addresses.split_query(addresses.within(addresses.absolute(root), ""))[0])
        return path[:literal], path[literal:], query
    rest = ""
    while path != os.sep and not os.path.exists(path):
        path, _, name = path.rpartition(os.sep)
        rest = f"{os.sep}{name}{rest}"
        path = path or os.sep
    return path.rstrip(os.sep), rest, ""


def _hits(literal: str, name: str, query: str) -> list[str]:
    """The files that `name` (after `literal`) stands for."""
    url = literal + name + query
    if not is_remote(url):
        if not glob.has_magic(name):
            return _existing(url)
        found = sorted(glob.glob(glob.escape(literal) + name))
        if lost := [cause for path in found if (cause := foreign.no_shard(path)) is not None]:
            raise UserError(lost)
        return [path for path in found if os.path.isfile(path)]
    last = name_of(url)
    if query or not glob.has_magic(last):
        return _existing(url)
    if url.startswith("http"):
        raise UserError(
            f"{url}: http cannot list files; use a brace range such as {{000000..000012}}"
        )
    folder = folder_of(url)
    return sorted(f"{folder}/{n}" for n in _names(folder) if fnmatchcase(n, last))


def _existing(url: str) -> list[str]:
    try:
        stat(url)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:  # not allowed, a name too long, a zero byte in it
        raise UserError(f"{url!r} cannot be opened: {error}") from None
    except RunError as error:
        raise UserError(str(error)) from error
    return [url] if is_remote(url) or os.path.isfile(url) else []


def _missing(url: str) -> str:
    folder, name = folder_of(url), name_of(url)
    if not is_remote(url) and (cause := foreign.no_shard(url)) is not None:
        return cause
    names = _names(folder)
    what = "no file matches" if glob.has_magic(name) else "there is no file"
    if not is_remote(url) and not os.path.isdir(folder):
        return f"{what} {url}: the folder {folder} does not exist"
    return f"{what} {url}" + near(name, names)


def _names(folder: str, *, below: bool = False) -> list[str]:
    """File names in a folder; empty where it cannot be listed. below: of a store, with folders."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if folder.startswith("http"):
        return []
    from pyarrow.fs import FileSelector

    system, path = _arrow(folder)
    select = FileSelector(path, allow_not_found=True, recursive=below)
    found = _retry(lambda: system.get_file_info(select), folder)
    inside = len(path.rstrip("/")) + 1
    return sorted(info.path[inside:] for info in found if info.is_file)


def tars_below(folder: str) -> list[str]:
    """All tars under a folder of a store, sorted. Raises UserError where http cannot list them."""
    if folder.startswith("http"):
        raise UserError(f"{folder}: http cannot list files; name the shards, as x-{{000..012}}.tar")
    return [f"{folder}/{n}" for n in _names(folder, below=True) if n.lower().endswith(".tar")]


def _spans(offsets: np.ndarray, sizes: np.ndarray, gap: int) -> list[np.ndarray]:
    """Groups of indices whose ranges are read as one, in file order."""
    if len(offsets) == 0:
        return []
    order = np.argsort(offsets, kind="stable")
    spans, group = [], [order[0]]
    start, end = int(offsets[order[0]]), int(offsets[order[0]] + sizes[order[0]])
    for i in order[1:]:
        first, last = int(offsets[i]), int(offsets[i] + sizes[i])
        if first - end <= gap and last - start <= SPAN_BYTES:
            group.append(i)
            end = max(end, last)
        else:
            spans.append(np.asarray(group))
            group, start, end = [i], first, last
    return [*spans, np.asarray(group)]


def _pread(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
        data += more
    return data


def _remote_range(url: str, offset: int, size: int) -> bytes:
    if size <= 0:
        return b""
    if url.startswith("http"):
        if url in _whole:
            return _whole[url][offset : offset + size]
        data = _retry(lambda: _whole_answer(_http_range, url, offset, size), url)
        if len(data) <= size:
            return data
        _whole.clear()  # a server without ranges sent everything: keep the last such file
        _whole[url] = data
        return data[offset : offset + size]
    return _retry(lambda: _whole_answer(_arrow_range, url, offset, size), url)


def _whole_answer(
    read: Callable[[str, int, int], bytes], url: str, offset: int, size: int
) -> bytes:
    """`read(...)`, where less than asked for is an error unless the file ends there.

    A server that does not say how long its answer is cannot be told from one that broke off.
    """
    data = read(url, offset, size)
    if len(data) < size and stat(url).size > offset + len(data):
        raise ConnectionError(f"the connection broke off after {len(data)} of {size} bytes")
    return data


def _http_range(url: str, offset: int, size: int) -> bytes:
    return _http().cat_file(addresses.on_the_wire(url), offset, offset + size)


def _arrow_range(url: str, offset: int, size: int) -> bytes:
    system, path = _arrow(url)
    with system.open_input_file(path) as file:
        return file.read_at(min(size, max(0, file.size() - offset)), offset)


_whole: dict[str, bytes] = {}


def _retry(action: Callable[[], T], url: str) -> T:
    """`action()`, again after passing failures. RunError when they do not pass."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:  # the libraries below raise many unrelated types
            if _is_certain(error):
                illegal = isinstance(error.__cause__, ValueError)
                if (isinstance(error, FileNotFoundError) and not illegal) or _status(error) == 404:
                    raise FileNotFoundError(url) from error
                kind = access.NotAllowedError if _refused(error) else RunError
                raise kind(f"{url} cannot be read: {error.__cause__ or error}") from error
            if attempt == ATTEMPTS - 1:
                raise RunError(
                    f"{url} cannot be read after {ATTEMPTS} attempts: "
                    f"{error.__cause__ or error!r}. Check the network{network.way(url)} and run "
                    "the same command with --resume"
                ) from error
            time.sleep(0.2 * 2**attempt * (0.5 + random.random()))
    raise AssertionError("unreachable")


def _is_certain(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 425, 429)
    if isinstance(error, FileNotFoundError):
        # fsspec wraps every failure of a HEAD request in this type
        return error.__cause__ is None or isinstance(error.__cause__, ValueError)
    certain = isinstance(error, PermissionError | ValueError)  # ValueError: no legal address
    return certain or any(mark in str(error) for mark in _CERTAIN)


def _refused(error: BaseException) -> bool:
    """Whether the store knows who asks, or wants to, and does not let them read."""
    denied = isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error)
    return denied or _status(error) in (401, 403)


def _status(error: BaseException) -> int | None:
    """The http status behind an error of fsspec, if the server answered at all."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    return status if isinstance(status, int) else None


def _http() -> Any:
    """The file system of http(s) as the proxies of the environment stand now."""
    return _http_system(network.proxies())


@lru_cache(maxsize=2)
def _http_system(_: tuple[tuple[str, str], ...]) -> Any:
    import aiohttp
    import fsspec

    # No limit on the whole: a slow server is waited for as long as bytes come.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    # encoded: a signature holds for the url to the letter. trust_env: proxies, and ~/.netrc.
    return fsspec.filesystem(
        "http", encoded=True, client_kwargs={"timeout": timeout, "trust_env": True}
    )


def _arrow(url: str) -> tuple[Any, str]:
    scheme, _, path = url.partition("://")
    settings = access.settings()
    proxy = None
    if scheme == "s3":  # Arrow's client does not look for one itself; that of gs does
        proxy = network.proxy_of(_s3_place(settings))
    return _arrow_system(scheme, tuple(sorted(settings.items())), proxy), path


def _s3_place(names: Mapping[str, str]) -> str:
    """The url that requests to s3 go to."""
    region = names.get("AWS_REGION") or names.get("AWS_DEFAULT_REGION") or "us-east-1"
    given = names.get("AWS_ENDPOINT_URL_S3") or names.get("AWS_ENDPOINT_URL")
    return given or f"https://s3.{region}.amazonaws.com"


def filesystem(url: str) -> tuple[Any, str]:
    """pyarrow's file system of an s3:// or gs:// url, and the path in it."""
    return _arrow(url)


@lru_cache(maxsize=4)
def _arrow_system(scheme: str, found: tuple[tuple[str, str], ...], proxy: str | None) -> Any:
    """The file system of a scheme; `found` (see `access.settings`) tells when to make a new one."""
    from pyarrow import fs

    if scheme == "gs":
        # By itself it tries for 15 minutes where nothing answers.
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=10))
    names = dict(found)
    wanted = {
        "endpoint_override": names.get("AWS_ENDPOINT_URL_S3") or names.get("AWS_ENDPOINT_URL"),
        "region": names.get("AWS_REGION") or names.get("AWS_DEFAULT_REGION"),
        "proxy_options": proxy,
    }
    # By name, else a copy for another process (Ray Train's controller) goes there without them.
    keys = dict(zip(("access_key", "secret_key", "session_token"), access.KEYS, strict=True))
    if all(name in names for name in access.KEYS[:2]):
        wanted |= {argument: names.get(name) for argument, name in keys.items()}
    return fs.S3FileSystem(**{name: value for name, value in wanted.items() if value})


class _RangeStream(io.RawIOBase):
    """A remote file read forwards in blocks, each its own request that can be repeated."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at, self._block = url, size, 0, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block and self._at < self._size:
            size = min(STREAM_BLOCK, self._size - self._at)
            self._block = _remote_range(self._url, self._at, size)
            self._at += len(self._block)
            if not self._block:
                self._size = self._at  # it became shorter since it was measured
        part = self._block[: len(buffer)]
        buffer[: len(part)] = part
        self._block = self._block[len(part) :]
        return len(part)
