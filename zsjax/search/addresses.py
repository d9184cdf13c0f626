"""Addresses of servers and proxies, and keys of servers."""

import os
import urllib.request
from urllib.parse import urlsplit

from zsjax.errors import InputError


def check_address(url: str, example: str) -> str:
    """The url of a server. Raises InputError without an http(s) scheme, a host or a possible port."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:  # a port beyond 65535, half an IPv6 address
        pass
    raise InputError(f"{url!r} is not the URL of a server; use {example}")


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
