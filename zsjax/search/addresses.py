"""Addresses of servers and proxies, and keys of servers."""

import os
import re
import urllib.request
from urllib.parse import parse_qsl, urlsplit

from zsjax.errors import InputError

_SECRET = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)


def check_address(url: str, example: str) -> str:
    """The url of a server. Raises InputError without an http(s) scheme, a host or a possible port."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:  # a port beyond 65535, half an IPv6 address
        pass
    raise InputError(f"{shown_address(url)!r} is not the URL of a server; use {example}")


def secret_in(url: str) -> str:
    """What of an address is a secret, by its place or name: "user and password", "parameter 'api_key'"; "" for nothing."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        return "user and password"
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)]
    return f"parameter {named[0]!r}" if named else ""


def authorization(key_env: str, server: str) -> dict[str, str]:
    """The header with the key in the environment variable `key_env`; {} for "". Raises InputError if it is not set."""
    return {"Authorization": f"Bearer {environment_key(key_env, server)}"} if key_env else {}


def environment_key(name: str, server: str) -> str:
    """The key in the environment variable `name`. Raises InputError where it is missing or cannot be a header."""
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"{server} needs a key: set the environment variable {name}")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the environment variable {name} has characters that a key cannot have; copy the key again")
    return key


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address, or None."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy and (proxy if "://" in proxy else f"http://{proxy}")


def shown_address(url: str) -> str:
    """An address without its secrets: query, user and password."""
    scheme, mark, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
