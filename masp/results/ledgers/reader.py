"""Reading ledgers some thousand lines at a time: what is needed of millions of records is never all of them at once.

- A last line that is not complete is what a kill leaves behind. It is dropped, and its sample is scored again.
- A damaged line anywhere else was complete once, so something else went wrong: an error, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from masp.errors import DataError, InputError
from masp.files.json_text import is_json
from masp.files.jsonl import parse_object
from masp.files.regular import opened
from masp.files.text import shortened, shown, shown_apart
from masp.files.typed import decode
from masp.results.ledger_format import (
    READABLE,
    ROUNDING,
    VERSION,
    Header,
    MachineLine,
    Record,
    damaged,
    scores_problem,
    unsealed_line,
)

_BLOCK = 1 << 20
"""Bytes that are read at a time."""
_MAX_LINE = 64 << 20
"""A line of more bytes is not one of ours: a record of a thousand categories has 50,000."""


class LedgerReader:
    """Reads a ledger as it is now; bytes appended meanwhile are left to the next reader.

    Args:
        path: Ledger file; one that does not exist holds nothing.
        start: First byte, the beginning of a line: 0, or `num_valid_bytes` of an earlier reader.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path, self.start = path, start
        self.header: Header | None = None
        """None before the first chunk, where `start` is not 0, and where a kill left no complete first line."""
        self.machines: list[dict[str, Any]] = []
        """In the order in which they wrote; complete after the last chunk."""
        self.num_valid_bytes = start
        """End of the last complete line; final after the last chunk."""
        self._must_have_checksums = False

    def chunks(self) -> Iterator[list[tuple[int, Record]]]:
        """The records with the numbers of their lines (counted from `start`), some thousand at a time.

        Raises:
            InputError: The file cannot be read, or another version of MASP wrote it.
            DataError: A line is damaged, or its record is not a valid one.
        """
        number = 0
        with opened(self.path) as file:
            for lines in _whole_lines(file, self.path, self.start) if file else ():
                numbers: list[int] = []
                texts: list[bytes] = []
                for line in lines:
                    number += 1
                    text = self._unsealed(line, number)
                    if number == 1 and self.start == 0:
                        self._take_header(text)
                    elif _is_machine(text):
                        self.machines.append(self._decode(MachineLine, text, number).machine)
                    else:
                        numbers.append(number)
                        texts.append(text)
                yield list(zip(numbers, self._records(numbers, texts), strict=True))
                self.num_valid_bytes += sum(map(len, lines)) + len(lines)

    def records(self) -> Iterator[Record]:
        """The records one after another; errors as of `chunks`."""
        for chunk in self.chunks():
            for _, record in chunk:
                yield record

    def _take_header(self, text: bytes) -> None:
        self.header = _header(self.path, text)
        self._must_have_checksums = self.header.ledger > 1
        if self.header.machine is not None:
            self.machines.append(self.header.machine)

    def _unsealed(self, line: bytes, number: int) -> bytes:
        try:
            text, has_checksum = unsealed_line(line)
        except ValueError as error:
            raise damaged(self.path, number, str(error)) from None
        if self._must_have_checksums and not has_checksum:
            raise damaged(self.path, number, _what_is_wrong(line) or "it has no checksum")
        return text

    def _records(self, numbers: list[int], texts: list[bytes]) -> list[Record]:
        try:
            records = decode(list[Record], b"[" + b",".join(texts) + b"]", "", unique_keys=False)
        except DataError:
            records = []
        if len(records) != len(texts):  # one by one finds which line it is, or takes what only `surrogates` allows
            records = [self._decode(Record, text, number) for text, number in zip(texts, numbers, strict=True)]
        if _numbers_fit(records):
            return records
        for record, number in zip(records, numbers, strict=True):
            if problem := scores_problem(record):
                raise damaged(self.path, number, f"the record of sample {shortened(record.sample_key, 200)} {problem}")
        return records

    def _decode(self, kind: type, text: bytes, number: int) -> Any:
        try:
            return decode(kind, text, "", unique_keys=False, surrogates=True)
        except DataError as error:
            raise damaged(self.path, number, str(error).removeprefix(": ")) from None


def _numbers_fit(records: list[Record]) -> bool:
    """Whether the numbers of some records are certainly those of a model; false is for `scores_problem` to decide."""
    width = len((records[0].scores or ()) if records else ())
    if (
        not width
        or any(
            r.scores is None or r.mean_scores is None or len(r.scores) != width or len(r.mean_scores) != width
            for r in records
        )
        or any(r.source is not None for r in records)
    ):
        return False
    scores, means = (np.array(values) for values in ([r.scores for r in records], [r.mean_scores for r in records]))
    return bool(max(scores.max(), means.max()) <= ROUNDING and (means >= scores - ROUNDING * (1 - scores)).all())


def _is_machine(text: bytes) -> bool:
    return text.startswith(b'{"machine":')


def _what_is_wrong(line: bytes) -> str | None:
    """Why a line without checksum is not a valid one anyway; None if it is."""
    try:
        decode(MachineLine if _is_machine(line) else Record, line, "", unique_keys=False, surrogates=True)
    except DataError as error:
        return str(error).removeprefix(": ")
    return None


def _whole_lines(file: BinaryIO, path: Path, start: int) -> Iterator[list[bytes]]:
    """The complete lines, a block of them at a time; the last one is left out if it is what a kill leaves."""
    file.seek(0, 2)
    left = file.tell() - start
    file.seek(start)
    rest = b""
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        left -= len(block)
        lines = (rest + block).split(b"\n")
        # The last complete line is kept back: whether it may be dropped is known at the end of the file.
        rest = b"\n".join(lines[-2:])
        if len(rest) > _MAX_LINE:
            raise DataError(f"{path} is damaged: it holds a line of more than {_MAX_LINE:,} bytes; delete the file")
        if lines[:-2]:
            yield lines[:-2]
    *last, torn = rest.split(b"\n")
    if last and (torn or not _is_cut(last[0])):
        yield last


def _is_cut(line: bytes) -> bool:
    """Whether a last line that is ended is not JSON all the same: two kills, the second of which wrote the end."""
    return not is_json(line)


def _header(path: Path, line: bytes) -> Header:
    """The header of a first line, without its checksum.

    Raises:
        InputError: of another version of MASP. DataError: damaged.
    """
    try:
        header = decode(Header, line, "not a valid ledger header", unique_keys=False, surrogates=True)
    except DataError as error:
        value = parse_object(line)
        version = None if value is None else value.get("ledger")
        if version is None or version in READABLE:
            raise damaged(path, 1, str(error)) from None
    else:
        version = header.ledger
        if version in READABLE:
            return header
    raise InputError(f"{path}, line 1: ledger format {shown(version)}, this version of MASP reads up to {VERSION}")


def read_header(path: Path) -> Header | None:
    """The first line of a ledger alone; None if it is missing or cut off.

    Raises:
        InputError: it cannot be read, or another version of MASP wrote it. DataError: it is damaged.
    """
    with opened(path) as file:
        line = b"" if file is None else file.readline(_MAX_LINE)
        if not line.endswith(b"\n") or (_is_cut(line) and file is not None and not file.read(1)):
            return None
    try:
        text, _ = unsealed_line(line[:-1])
    except ValueError as error:
        raise damaged(path, 1, str(error)) from None
    return _header(path, text)


def check_identity(path: Path, header: Header | None, ours: dict[str, Any]) -> None:
    """Refuse a ledger of another evaluation.

    Raises:
        InputError: names the first field that differs, and both values.
    """
    if header is None:
        return
    theirs = header.identity
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in theirs or name not in ours or theirs[name] != ours[name]:
            there, here = shown_apart(_text(theirs, name), _text(ours, name), 200)
            raise InputError(
                f"{path}: the ledger of another evaluation: {name} is {there} there and {here} here; "
                f"choose another evaluate.output_dir, or delete {path.parent}"
            )


def _text(identity: dict[str, Any], name: str) -> str:
    return json.dumps(identity[name], ensure_ascii=False) if name in identity else "not set"
