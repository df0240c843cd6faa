"""Damage to small valid files, from a seeded generator: of bytes, of JSON and of mappings."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (
    0,
    1,
    2,
    7,
    31,
    255,
    1 << 15,
    (1 << 31) - 1,
    1 << 31,
    1 << 60,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_ANYTHING: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    1 << 31,
    1 << 63,
    10**400,
    0.0,
    -0.5,
    1.5,
    1e-320,
    1e38,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "\0",
    "a\nb",
    "re:(a+)+$",
    "default",
    [],
    [0],
    ["x"],
    [[]],
    {},
    {"x": 1},
)


def damaged_bytes(random_: random.Random, data: bytes, others: bytes = b"") -> bytes:
    """One to four edits: bits, interesting numbers, cuts, copies."""
    result = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(result) + 1)
        end = min(len(result), at + random_.choice((1, 4, 8, 32, 256)))
        kind = random_.randrange(7)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << random_.randrange(8)
        elif kind == 1 and at < len(result):
            result[at] = random_.choice((0, 1, 9, 10, 32, 34, 45, 91, 93, 123, 127, 128, 255))
        elif kind == 2:
            size = random_.choice((4, 8))
            number = random_.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            result[at : at + size] = number.to_bytes(size, "little")
        elif kind == 3:
            del result[at:]
        elif kind == 4:
            del result[at:end]
        elif kind == 5:
            result[at:at] = result[at:end]
        else:
            source = others or bytes(result)
            start = random_.randrange(len(source) + 1)
            result[at:at] = source[start : start + random_.choice((1, 8, 64))]
    return bytes(result)


def damaged_value(random_: random.Random, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, taken away, copied or nested."""
    result = copy.deepcopy(value)
    for _ in range(random_.choice((1, 1, 2, 3))):
        places = list(_places(result))
        if not places:
            return random_.choice(_ANYTHING)
        parent, key = random_.choice(places)
        kind = random_.randrange(6)
        if kind <= 2:
            parent[key] = copy.deepcopy(random_.choice(_ANYTHING))
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, name = random_.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                parent[key] = copy.deepcopy(other[name])
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[key : key + 1]) * random_.choice((1, 100)))
        else:
            parent[str(key) + random_.choice("x\n")] = copy.deepcopy(parent[key])
    return result


def damaged_json(random_: random.Random, text: bytes) -> bytes:
    """JSON text damaged in its parts, or as bytes, or made deep."""
    kind = random_.randrange(10)
    if kind == 0:
        return damaged_bytes(random_, text)
    if kind == 1:
        depth = random_.choice((100, 2000, 100_000))
        opening, closing = random_.choice(((b"[", b"]"), (b'{"a":', b"}")))
        at = text.find(b":", random_.randrange(max(1, len(text) // 2))) + 1
        return text[:at] + opening * depth + b"1" + closing * depth + b"," + text[at:]
    return json.dumps(damaged_value(random_, json.loads(text))).encode()


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(child)
