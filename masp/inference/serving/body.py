"""From the body of a request to images, within limits that hold while it is read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from masp.files.json_text import parse_json
from masp.files.text import first_line, shortened
from masp.inference.images import MemoryImage, NamedImage

FIELD = "image"
"""Name of a form's fields, and of the key in JSON."""
FORMS = f"multipart/form-data with files named {FIELD!r}, an image as the body, or JSON {{{FIELD!r}: base64}}"
_MAX_FIELDS = 4
_MAX_NAME = 200
_LINGER_S, _LINGER_TIMES = 2.0, 4
"""Seconds, and multiples of the limit, for which a body that is too large is still read, so that clients that send all
of it before they read get to see the answer."""


class TooLarge(HTTPException):
    """A body beyond the limit."""

    def __init__(self, limit: int):
        super().__init__(413, f"the body is larger than {limit / 2**20:g} MiB, which this server takes at most")


async def read_images(request: Request, max_bytes: int, max_images: int) -> tuple[list[NamedImage], bool]:
    """The images of a request.

    Args:
        request: Request; `FORMS` says what its body may be.
        max_bytes: Size of the body, at most.
        max_images: Number of images, at most.

    Returns:
        The images, named as their files are, and whether they came as a form, which may hold several.

    Raises:
        HTTPException: 400, 413 or 415, with the reason.
        ClientDisconnect: The client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, max_bytes, max_images), True
    if kind == "application/json":
        # beside the event loop, which many megabytes would hold up
        return [_named("image", await asyncio.to_thread(_from_json, await _whole(request, max_bytes)))], False
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [_named("image", await _whole(request, max_bytes))], False
    raise HTTPException(415, f"Content-Type {shortened(kind) or 'missing'}: send {FORMS}")


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; refused as soon as it says, or turns out, to be too large."""
    stream = request.stream()
    length = request.headers.get("content-length", "")
    is_too_large, count = length.isdecimal() and int(length[:20]) > max_bytes, 0
    if not is_too_large:
        async for chunk in stream:
            count += len(chunk)
            if count > max_bytes:
                is_too_large = True
                break
            yield chunk
    if is_too_large:
        # who expects `100 Continue` sends nothing before it
        if request.headers.get("expect", "").lower() != "100-continue":
            await _linger(stream, _LINGER_TIMES * max_bytes)
        raise TooLarge(max_bytes)


async def _linger(stream: AsyncIterator[bytes], max_bytes: int) -> None:
    """Read and forget what a client still sends, for a while."""
    left = max_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return


async def _whole(request: Request, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in _limited(request, max_bytes):
        data += chunk
    return bytes(data)


def _from_json(data: bytes) -> bytes:
    wanted = f"the JSON must be an object with the key {FIELD!r} alone, the image in base64"
    try:
        found = parse_json(data)
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {first_line(error)}") from None
    if not isinstance(found, dict) or list(found) != [FIELD] or not isinstance(found[FIELD], str):
        raise HTTPException(400, wanted)
    try:
        return base64.b64decode(found[FIELD], validate=True)
    except ValueError as error:
        raise HTTPException(400, f"{wanted}: {first_line(error)}") from None


async def _form(request: Request, max_bytes: int, max_images: int) -> list[NamedImage]:
    parser = _InMemory(
        request.headers, _limited(request, max_bytes), max_files=max_images, max_fields=_MAX_FIELDS, max_part_size=1024
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    except (LookupError, UnicodeError) as error:  # of a charset that is none
        raise HTTPException(400, f"the form cannot be read: {first_line(error)}") from None
    images = []
    for name, value in form.multi_items():
        if name != FIELD or not isinstance(value, UploadFile):
            raise HTTPException(
                400, f"field {shortened(name)!r} of the form: every field must be a file named {FIELD!r}"
            )
        images.append(_named(value.filename or "image", await value.read()))
    if not images:
        raise HTTPException(400, f"the form has no file named {FIELD!r}")
    return images


class _InMemory(MultiPartParser):
    """Writes no files: the size of the body is limited already."""

    spool_max_size = 2**31


def _named(name: str, data: bytes) -> NamedImage:
    if not data:
        raise HTTPException(400, f"{shortened(name)}: the image is empty")
    return NamedImage(shortened(name, _MAX_NAME), MemoryImage("", "image", data))
