"""Addresses of servers and proxies, and keys of servers."""

import base64
import os
import re
import urllib.request
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

from zsjax.errors import InputError, printable

_SECRET = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)
# Names of secrets among the fields of a request: no max_tokens, stop_token_ids or key_env.
_SECRET_FIELD = re.compile(r"(?:api|access|private|auth)[_-]?key$|^key$|authori[sz]ation|passw|secret|credential|bearer|"
                           r"(?:api|access|auth|hf)[_-]?token$", re.IGNORECASE)
_LONGEST_ESCAPE = 10  # characters of one escaped character


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
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if is_secret(name)]
    return f"parameter {named[0]!r}" if named else ""


def is_secret(name: str) -> bool:
    """Whether a parameter of an address with this name holds a secret."""
    return bool(_SECRET.search(name))


def secret_fields(value) -> list[str]:
    """Dotted names in a dict of a config, at any depth, that hold a secret by their name."""
    if isinstance(value, list | tuple):
        return [name for item in value for name in secret_fields(item)]
    if not isinstance(value, Mapping):
        return []
    found = []
    for name, item in value.items():
        if isinstance(item, str):
            found += [str(name)] * (item != "" and _is_secret_field(name))
        else:
            found += [f"{name}.{inner}" for inner in secret_fields(item)]
    return found


def without_secret_fields(value):
    """The value with *** in place of what `secret_fields` names."""
    if isinstance(value, list | tuple):
        return [without_secret_fields(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {name: "***" if isinstance(item, str) and _is_secret_field(name) else without_secret_fields(item)
            for name, item in value.items()}


def _is_secret_field(name) -> bool:
    return bool(_SECRET_FIELD.search(str(name))) and not str(name).lower().endswith("_env")


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


def proxy_secrets(proxy: str | None) -> list[str]:
    """The password of a proxy's address, or its user where it has none; and both as HTTP sends them, in base64."""
    account = (proxy or "").partition("://")[2].partition("/")[0].rpartition("@")[0]
    if not account:
        return []
    user, _, password = account.partition(":")
    sent = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return [password or user, unquote(password or user), sent]


def shown_text(text: str, secrets: Sequence[str], most: int) -> str:
    """A server's text as one line for the log: *** for each secret, signs for control characters, then cut to `most`.

    A secret is found as it is, and with its punctuation escaped as in addresses, JSON, HTML or Python.
    """
    secrets = [secret for secret in secrets if secret]
    longest = max(map(len, secrets), default=0) * _LONGEST_ESCAPE
    begin, rest = text[:10 * most + longest], text[10 * most + longest:]
    for secret in sorted(secrets, key=len, reverse=True):
        begin = re.sub("".join(map(_spellings, secret)), "***", begin, flags=re.IGNORECASE)
    if rest:
        begin = begin[:max(0, len(begin) - longest)]  # a part of a secret, whose rest is beyond
    line = " ".join(printable(begin).split())
    return line if len(line) <= most else f"{line[:most]}..."


def _spellings(c: str) -> str:
    code = f"{ord(c):02x}"
    return c if c.isalnum() else rf"(?:\\*{re.escape(c)}|%(?:25)?{code}|\\+(?:u00|x){code}|&#?\w{{1,6}};)"


def shown_address(url: str) -> str:
    """An address without its secrets: query, user and password."""
    scheme, mark, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
