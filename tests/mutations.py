"""Valid values and files, changed at random: what hostile or damaged input is drawn from."""

import functools
import json
import struct

# What stands where a number, a text, a list or an object was expected.
ODD = [None, True, False, -1, 0, 1, 2**31, 2**32 - 1, 10**9, 10**30, 10**400, 1.5, 1e308, float("nan"), float("inf"), "",
       " ", "x", "\ud83d", "\0", "a\nb", "\u2028", "\u202e<|im_end|>", "</think>", "<think>", "length", "[1]", "{",
       " " * 2000, "\n" * 2000, "useful documents\nquery: a\nquestion:" + " " * 2000 + "x",
       "9" * 5000, "x" * 5000, "Doc 1:\n" * 50, [], [[]], [None], [1], ["a"], ["a", 1], [["a"]], {}, {"a": 1},
       {"a": {"b": None}}, {"document": None}, {"text": 1}, {"target": ["a"]}]
ODD_NUMBERS = [0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


def places(value, at=()):
    """Paths of everything inside a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*at, name))


def mutated(value, draw, odd=ODD, least=1, most=3):
    """The JSON value with `least` to `most` places replaced, removed, doubled, or put into a list."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(least, most)):
        inner = [place for place in places(value) if place]
        if not inner or draw.random() < 0.03:
            value = json.loads(json.dumps(draw.choice(odd)))
            continue
        depth = draw.choice(sorted({len(place) for place in inner}))  # else the many leaves would be drawn only
        *path, last = draw.choice([place for place in inner if len(place) == depth])
        node = functools.reduce(lambda node, name: node[name], path, value)
        change = draw.choice(["replace", "replace", "replace", "remove", "double", "wrap"])
        if change == "remove":
            del node[last]
        elif change == "double" and isinstance(node, list):
            node.append(node[last])
        elif change == "wrap":
            node[last] = [node[last]]
        else:
            node[last] = json.loads(json.dumps(draw.choice(odd)))
    return value


def json_bytes(value, draw) -> bytes:
    """The value as JSON, now and then damaged; a lone surrogate may be an escape or three bytes."""
    data = json.dumps(value, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")
    return damaged(data, draw) if draw.random() < 0.25 else data


def damaged(data: bytes, draw) -> bytes:
    """The bytes cut, flipped, overwritten, doubled in part, or with an odd number of four or eight bytes in them."""
    if not data:
        return data
    at, change = draw.randrange(len(data)), draw.randrange(8)
    if change == 0:
        return data[:at]
    if change == 1:
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1:]
    if change == 2:
        return data[:at] + draw.randbytes(draw.randint(1, 9)) + data[at + 9:]
    if change == 3:
        return data[:at] + data[max(0, at - draw.randint(1, 200)):]
    if change in (4, 5):
        return data[:at] + odd_number(draw) + data[at + 8:]
    if change == 6:
        return draw.choice([b"", b"\0" * 64, b"\xef\xbb\xbf" + data, b"\xff\xfe" + data, b"[" * 100_000, b"PK\3\4" + data,
                            b"version https://git-lfs.github.com/spec/v1\n"])
    return data + data[at:]


def odd_number(draw) -> bytes:
    """An odd number as four or eight bytes, little-endian."""
    number = draw.choice(ODD_NUMBERS)
    return struct.pack("<Q", number) if draw.random() < 0.6 else struct.pack("<I", number & 0xFFFFFFFF)
