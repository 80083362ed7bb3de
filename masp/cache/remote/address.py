"""What a user may give as the other side of a transfer."""

from __future__ import annotations

from pathlib import Path

from masp.cache.remote.directory import DirectoryPlace
from masp.cache.remote.place import Place
from masp.errors import InputError


def open_place(address: str, key: str, *, public: bool = False) -> Place:
    """The place that an address names; nothing is read from it yet.

    Args:
        address: `hf://owner/name`, a URL that fsspec knows, or a directory.
        key: Argument of the command, for messages.
        public: Whether a repository of the hub that is made is public.

    Raises:
        InputError: Not a valid address.
    """
    if not address:
        raise InputError(f"{key}: must be hf://owner/name, a URL that fsspec knows, or a directory, not empty")
    # both libraries take a while to import, and neither is needed for a directory
    if address.startswith("hf://"):
        from masp.cache.remote.hub import HubPlace

        return HubPlace(address, public)
    if public:
        raise InputError(f"--public is for repositories of the hub, not for {address}")
    if "://" in address:
        from masp.cache.remote.bucket import BucketPlace

        return BucketPlace(address)
    return DirectoryPlace(Path(address), key)
