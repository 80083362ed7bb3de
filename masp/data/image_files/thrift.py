"""Structures of Thrift's compact protocol, in which parquet files describe themselves.

Arrow reads them, too, but its Python interface ends the process on some damaged ones, and keeps others to itself.
"""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 16


def read_structure(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a structure.

    Args:
        data: Bytes that hold it.
        at: Where it begins.
        depth: How many others it is in.

    Returns:
        Its fields by number (integers, bytes, structures and lists; None for booleans and floats), and where it ends.

    Raises:
        IndexError: It ends behind the data.
        ValueError: It is not such a structure.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while byte := data[at]:
        at += 1
        if delta := byte >> 4:
            number += delta
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, byte & 0x0F, depth)
    return fields, at + 1


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (5, 6, 4):
        return _integer(data, at)
    if kind == 8:
        size, at = _unsigned(data, at)
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    if kind == 12:
        return read_structure(data, at, depth + 1)
    if kind in (9, 10):
        return _list(data, at, depth + 1)
    if kind in (1, 2):  # a boolean, which is its kind
        return None, at
    if kind == 3:
        return None, at + 1
    if kind == 7:
        return None, at + 8
    raise ValueError(f"a field has the unknown kind {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    size, kind = data[at] >> 4, data[at] & 0x0F
    at += 1
    if size == 15:
        size, at = _unsigned(data, at)
    if at + size > len(data):  # each value takes a byte at least
        raise IndexError
    if kind in (1, 2):
        return [None] * size, at + size
    found = []
    for _ in range(size):
        value, at = _value(data, at, kind, depth)
        found.append(value)
    return found, at
