"""Addresses of data: what is a path and what a url, what lies beside it, how it may be shown.

The one place that takes urls apart. An http url keeps its query to the letter (it may be signed),
and whatever lies beside it is asked for with the same query.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"  # stands for user names, passwords and queries wherever a url is shown
SUPPORTED = "use s3://, gs://, http:// or https://, or a path"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_REMOTE = re.compile(r"(s3|gs|https?)://")
_COLON = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters: C: is a drive
_FILE = re.compile(r"file:(?://(?P<host>[^/]*))?(?=/)", re.IGNORECASE)
_LIKE = {
    "gcs": "write gs://",
    "s3a": "write s3://",
    "s3n": "write s3://",
    "hf": "https://huggingface.co/datasets/OWNER/NAME/resolve/main/FILE is the same file",
    **dict.fromkeys(
        ("az", "abfs", "abfss", "adl", "azure", "wasb", "wasbs"),
        "an https:// url of the blob with its SAS token reads it",
    ),
    "pipe": "it would run a command; copy the shards first",
}


def is_url(place: str) -> bool:
    """Whether `place` begins like scheme://, supported or not."""
    return _URL.match(place) is not None


def is_remote(place: str) -> bool:
    """Whether `place` is a url that can be read: s3, gs, http or https."""
    return _REMOTE.match(place) is not None


def absolute(place: str, base: str | os.PathLike[str] = ".") -> str:
    """`place` seen from `base` (a folder or a url): an absolute path, or a url.

    ``file:`` urls become paths, schemes small letters; nothing else of a url is touched.
    """
    if found := _FILE.match(place):
        return _path_of_file_url(place, found)
    if found := _URL.match(place):
        return place[: found.end()].lower() + place[found.end() :]
    base = os.fspath(base)
    if is_url(base):
        return within(base, place)
    return os.path.abspath(os.path.join(os.path.expanduser(base), os.path.expanduser(place)))


def _path_of_file_url(place: str, found: re.Match[str]) -> str:
    path = place[found.end() :]
    plain = unquote(path)
    # Both spellings are in use; the one whose folder exists is meant.
    decoded = os.path.exists(os.path.dirname(plain)) and not os.path.exists(os.path.dirname(path))
    return os.path.abspath(plain if decoded or os.path.exists(plain) else path)


def problem_of(place: str) -> str | None:
    """Why a url cannot be read, as a sentence that says what to write; None where it may be."""
    if local := _FILE.match(place):
        if (local["host"] or "localhost").lower() == "localhost":
            return None
        return f"{place}: a file url names no other machine; give the path, or file:///PATH"
    found = _URL.match(place)
    if found is None:
        return None
    scheme = found[1].lower()
    if scheme not in ("s3", "gs", "http", "https"):
        return _unsupported(place, f"{scheme}://", scheme)
    head, tail = _parts(place[found.end() :])
    if HIDDEN in head or f"?{HIDDEN}" in tail:
        return (
            f"{place} was written down without its secrets: give the whole url again, in the "
            "recipe or as key=value (data_root=..., modalities.NAME.train=...)"
        )
    if not head:
        return f"{place} names no {'host' if scheme.startswith('http') else 'bucket'}"
    if "@" in head and not scheme.startswith("http"):
        return (
            f"{place}: keys have no place in an {scheme}:// url; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (gs://: GOOGLE_APPLICATION_CREDENTIALS)"
        )
    return None


def misread(place: str) -> str | None:
    """What a path that does not exist was probably meant as: ``pipe:...``, ``a.tar::b.tar``."""
    if "::" in place:
        return (
            f"{place}: '::' joins nothing here; name several shards as a list or as further "
            f"arguments; {SUPPORTED}"
        )
    found = None if is_remote(place) or _FILE.match(place) else _COLON.match(place)
    return _unsupported(place, f"{found[1]}:", found[1].lower()) if found else None


def _unsupported(place: str, mark: str, scheme: str) -> str:
    hint = f" ({_LIKE[scheme]})" if scheme in _LIKE else ""
    return f"{place}: {mark} is not supported; {SUPPORTED}{hint}"


def split_query(place: str) -> tuple[str, str]:
    """(`place` without its query, the query with its ``?``); only http urls have one."""
    if not place.startswith("http") or not is_remote(place):
        return place, ""
    cut = min((i for i in map(place.find, "?#") if i >= 0), default=len(place))
    return place[:cut], place[cut:]


def within(root: str, name: str) -> str:
    """The file `name` under the folder or url `root`."""
    plain, query = split_query(root)
    return f"{plain.rstrip('/')}/{name}{query}"


def beside(place: str, name: str) -> str:
    """The file `name` in the folder of `place`."""
    return within(folder_of(place), name)


def folder_of(place: str) -> str:
    """The folder (or url prefix, with its query) of `place`, without the final slash."""
    if not is_remote(place):
        return os.path.dirname(place)
    plain, query = split_query(place)
    return plain.rpartition("/")[0] + query


def name_of(place: str) -> str:
    """The last component of `place`, without the query of a url."""
    if not is_url(place):
        return os.path.basename(place)
    return split_query(place)[0].rpartition("/")[2]


def on_the_wire(url: str) -> str:
    """An http url with what no url may hold (spaces, umlauts) quoted and all else as it is."""
    quoted = quote(url, safe="!#$%&'()*+,/:;=?@[]~")
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quoted)


# ------------------------------------------------------------------------------ being shown

_SHOWN = re.compile(r"(?<=[A-Za-z0-9+.-])://((?:[^\s\"'<>`\\]|'(?=[\w%]))+)")
_END = re.compile(r"[.,:;!)\]}]*$")


def redacted(text: str) -> str:
    """`text` without the user names, passwords, queries and fragments of the urls in it.

    Paths stay whole; so do sqlite:/// and file:/// urls, which hold nothing else.
    """
    if "://" not in text:
        return text
    if (found := _URL.match(text)) and not re.search(r"\s", text):
        return found[0] + _without_secrets(found[1].lower(), text[found.end() :])

    def shown(match: re.Match[str]) -> str:
        scheme = re.search(r"[A-Za-z0-9+.-]*$", text[max(0, match.start() - 20) : match.start()])
        rest = match[1]
        end = _END.search(rest)
        last = end[0] if end else ""
        kept = rest[: len(rest) - len(last)]
        return "://" + _without_secrets(scheme[0].lower() if scheme else "", kept) + last

    return _SHOWN.sub(shown, text)


def redacted_tree(value: Any) -> Any:
    """`redacted` for every string in nested dicts and lists, names of entries included."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_tree(k): redacted_tree(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(item) for item in value]
    return value


def _parts(rest: str) -> tuple[str, str]:
    """(user, password and host; path and query) of a url without its scheme."""
    cut = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    head, tail = rest[:cut], rest[cut:]
    if "@" not in head and re.search(r":(?!\d*$)[^\]]*$", head) and "@" in tail:
        # a password with a slash in it: everything up to the host is secret
        cut = rest.rfind("@") + 1
        more = min((i for i in (rest.find(c, cut) for c in "/?#") if i >= 0), default=len(rest))
        head, tail = rest[:more], rest[more:]
    return head, tail


def _without_secrets(scheme: str, rest: str) -> str:
    if scheme in ("sqlite", "file") and rest.startswith("/"):
        return rest
    head, tail = _parts(rest)
    if "@" in head:
        head = f"{HIDDEN}@{head.rpartition('@')[2]}"
    # s3 and gs know no query: there a ? is a wildcard, unless it introduces name=value
    wild = scheme in ("s3", "gs") and not re.search(r"\?[^?]*=", tail)
    for mark in () if wild else ("?", "#"):
        before, found, secret = tail.partition(mark)
        if secret:
            tail = f"{before}{found}{HIDDEN}"
            break
    return head + tail
