"""Exported models at the Hugging Face Hub: named files of bounded size, fetched once into the cache of huggingface_hub.

What is fetched is one commit of the repository. Where the hub cannot be asked, what was fetched before is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.export_format import NAMES, RECORD, SCHEME, check_size, read_record
from masp.errors import DataError, InputError
from masp.files.text import all_lines, shown

LOG = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?/?")


def parse_address(address: str, key: str) -> tuple[str, str | None]:
    """Repository and revision of `hf://owner/name` or `hf://owner/name@revision`.

    Args:
        address: Address; `hf://` may be missing.
        key: Setting or argument that it comes from, for errors.

    Raises:
        InputError: Not such an address.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = _ADDRESS.fullmatch(address.removeprefix(SCHEME))
    where = f"{key}: {shown(address)}" if key else shown(address)
    # a revision becomes a path in the cache of huggingface_hub
    if found is None or ".." in (found["revision"] or "").split("/"):
        raise InputError(
            f"{where}: must be hf://owner/name, which names a model repository of the hub, or hf://owner/name@revision"
        )
    try:
        validate_repo_id(found["repository"])
    except HFValidationError as error:
        raise InputError(f"{where}: not a valid name of a repository: {all_lines(error)}") from None
    return found["repository"], found["revision"]


def fetch(address: str, key: str, names: Sequence[str] = NAMES) -> Path:
    """The local directory with files of an exported model at the hub.

    Args:
        address: `hf://owner/name`, or with a revision `hf://owner/name@revision`.
        key: Setting that it comes from, for errors.
        names: Files to fetch beside `lineage.json`, those that exist.

    Raises:
        InputError: Not a valid address, no such repository, none with an exported model, or the hub cannot be asked and
            nothing was fetched before.
        DataError: A file is not the one that `lineage.json` lists.
    """
    from huggingface_hub import is_offline_mode

    from masp.cache.remote.place import Unreachable

    repository, revision = parse_address(address, key)
    where = f"{key}: {address}" if key else address
    if is_offline_mode():
        directory = _fetched_before(repository, revision, names)
        if directory is None:
            raise InputError(
                f"{where}: not fetched before, and the hub is turned off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; "
                "unset it once, or give a directory"
            )
        return directory
    try:
        return _fetch(repository, revision, names, where)
    except Unreachable as error:
        directory = _fetched_before(repository, revision, names)
        if directory is None:
            raise
        LOG.warning("%s; using what was fetched before, commit %s", error, directory.name[:12])
        return directory


def _fetch(repository: str, revision: str | None, names: Sequence[str], where: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import logging as hub_logging

    from masp.cache.remote.hub import hub_errors
    from masp.cache.remote.place import Unreachable

    hub_logging.set_verbosity_error()
    api = HfApi()
    with hub_errors(where, revision):
        try:
            commit = api.repo_info(repository, revision=revision).sha
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            raise InputError(
                f"{where}: no such model repository, or you may not see it (`hf auth login` logs you in at the hub)"
            ) from None
        entries = api.list_repo_tree(repository, revision=commit)
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        if RECORD not in sizes:
            raise InputError(f"{where}: not a model that `masp push` sent: it has no {RECORD}")
        for name in (RECORD, *names):
            check_size(name, sizes.get(name, 0), where)
        # by the revision, so that huggingface_hub notes which commit it is: that is how it is found offline
        path = Path(hf_hub_download(repository, RECORD, revision=revision))
        if path.parent.name != commit:
            raise Unreachable(f"{where}: the repository changed meanwhile; run the same command again")
        record = read_record(path.parent, where)
        for name in names:
            said = record.files.get(name)
            if said is None and name in sizes:
                raise InputError(f"{where}: {name} is not listed in {RECORD}: somebody added it")
            if said is not None and sizes.get(name) != said.bytes:
                raise DataError(
                    f"{where}: {name} has {sizes.get(name, 0):,} bytes, but {RECORD} says {said.bytes:,}; ask its "
                    "owner to run `masp push` again"
                )
        for name in names:
            if name in record.files:
                hf_hub_download(repository, name, revision=commit)
    return path.parent


def _fetched_before(repository: str, revision: str | None, names: Sequence[str]) -> Path | None:
    """The snapshot in the cache of huggingface_hub, if it has all that is asked for."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, RECORD, revision=revision)
    if not isinstance(found, str):
        return None
    directory = Path(found).parent
    record = read_record(directory, f"{SCHEME}{repository}")
    return directory if all((directory / name).exists() for name in names if name in record.files) else None
