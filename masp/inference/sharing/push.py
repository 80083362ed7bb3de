"""Sending an exported model to a repository of the Hugging Face Hub, in one commit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging as hub_logging

from masp.artifacts.export_format import CARD, MAX_CARD_BYTES, NAMES, RECORD, SCHEME
from masp.artifacts.exported import exported_settings, open_exported
from masp.artifacts.model_hub import parse_address
from masp.cache.remote.hub import hub_errors
from masp.cache.remote.transfers import patiently, size_text
from masp.errors import InputError
from masp.files.regular import read_bytes
from masp.files.text import all_lines
from masp.inference.sharing.card import PLACE
from masp.runtime.log import show


def push(directory: Path, name: str, private: bool = False, message: str | None = None) -> str:
    """Send an exported model.

    Args:
        directory: What `masp export` wrote.
        name: Repository: `owner/name` or `hf://owner/name`, with `@branch` for another branch than main.
        private: Whether a repository that is made is private; one that is there stays as it is.
        message: Message of the commit.

    Returns:
        The URL of the repository.

    Raises:
        InputError: Not an exported model, not a name of a repository, something else is there, there is no token, the
            hub cannot be reached, or it refuses.
        DataError: The exported model is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"DIR: {directory} is not a directory; `masp export RUN {directory}` makes it")
    repository, branch = parse_address(name, "NAME")
    exported = open_exported(str(directory), "DIR")
    exported_settings(exported)
    card = _card(directory, repository)
    address = f"{SCHEME}{repository}"
    if is_offline_mode():
        raise InputError(f"{address}: the hub is turned off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; unset it")
    if get_token() is None:
        raise InputError(f"{address}: no token of the hub: `hf auth login` gets one, or set HF_TOKEN")
    hub_logging.set_verbosity_error()
    sent: dict[str, Path | bytes] = {
        CARD: card,
        RECORD: directory / RECORD,
        **{file: directory / file for file in NAMES if file in exported.record.files},
    }
    sizes = {
        file: len(content) if isinstance(content, bytes) else content.stat().st_size for file, content in sent.items()
    }
    api = HfApi()
    there = patiently(functools.partial(_listed, api, repository, branch, address))
    made = "" if there is not None else f", a {'private' if private else 'public'} repository that is made"
    listed = ", ".join(f"{file} ({size_text(size)})" for file, size in sizes.items())
    show(f"push: to {api.endpoint}/{repository}{f' ({branch})' if branch else ''}{made}: {listed}")
    if there is None:
        patiently(functools.partial(_make, api, repository, private, address))
    stale = [file for file in NAMES if file in (there or ()) and file not in sent]
    message = message or f"A model of MASP {exported.record.masp}"
    patiently(functools.partial(_commit, api, repository, branch, address, sent, stale, message))
    url = f"{api.endpoint}/{repository}"
    at = f"@{branch}" if branch else ""
    show(f'push: {url}; masp.load("{address}{at}") loads it')
    return url


def _card(directory: Path, repository: str) -> bytes:
    """The model card, which people may have edited, with the name of its repository.

    Raises:
        InputError: There is none, or its metadata is not valid.
    """
    data = read_bytes(directory / CARD, max_bytes=MAX_CARD_BYTES, key="DIR")
    if data is None:
        raise InputError(f"DIR: {directory} has no {CARD}, the model card; export the run again")
    try:
        text = data.decode()
        ModelCard(text)
    except Exception as error:  # whatever its parser of YAML raises
        raise InputError(f"DIR: {directory / CARD}: not a valid model card: {all_lines(error)}") from None
    return text.replace(PLACE, f"{SCHEME}{repository}").encode()


def _listed(api: HfApi, repository: str, branch: str | None, address: str) -> set[str] | None:
    """Names of the files of a repository; None if it does not exist, or may not be seen.

    Raises:
        InputError: It holds something else than an exported model.
    """
    with _errors(address, branch):
        try:
            api.repo_info(repository, revision=branch)  # which fails at once where there is no network
            entries = list(api.list_repo_tree(repository, revision=branch))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    names = {entry.path for entry in entries if isinstance(entry, RepoFile)}
    others = sorted(names & set(NAMES))
    if others and RECORD not in names:
        raise InputError(f"{address} holds another model: it has {others[0]}, but no {RECORD}; give another name")
    return names


def _make(api: HfApi, repository: str, private: bool, address: str) -> None:
    with _errors(address):
        # None: public, unless the organization's own rule is another
        api.create_repo(repository, private=True if private else None, exist_ok=True)


def _commit(
    api: HfApi,
    repository: str,
    branch: str | None,
    address: str,
    sent: Mapping[str, Path | bytes],
    stale: list[str],
    message: str,
) -> None:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(file, content if isinstance(content, bytes) else str(content))
        for file, content in sent.items()
    ]
    operations += [CommitOperationDelete(file) for file in stale]
    with _errors(address, branch):
        try:
            api.create_commit(repository, operations, commit_message=message, revision=branch)
        except ValueError as error:  # the hub's own check of the model card
            if isinstance(error, HfHubHTTPError):
                raise
            raise InputError(f"{address}: the hub refuses the model card: {all_lines(error)}") from None


@contextlib.contextmanager
def _errors(address: str, branch: str | None = None) -> Iterator[None]:
    """As `hub_errors`, with what the user can do about a token."""
    with hub_errors(address, branch):
        try:
            yield
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:
                raise InputError(
                    f"{address}: the hub does not accept the token; `hf auth login` gets another"
                ) from None
            if status == 403:
                why = all_lines(error)
                raise InputError(f"{address}: this token may not write there; take one that may: {why}") from None
            raise
