"""Reading the configuration: defaults, then YAML files, then `key=value` overrides, each value checked."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masp.config.rules import Rule, config_rules, config_sections
from masp.config.schema import REQUIRED, Config
from masp.config.yaml_text import dump_yaml, parse_yaml
from masp.data.categories import normalise_category
from masp.errors import InputError

# The key by which a file builds on another one.
_BASE = "base"
_COMMAND_LINE = "command line"

T = TypeVar("T")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read and check the configuration of a run; see `load_settings`."""
    return load_settings(Config, path, overrides, _check_together)


def load_settings(
    root: type[T],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    check_together: Callable[[T, str], None] | None = None,
) -> T:
    """Read and check settings of any kind.

    Args:
        root: the dataclass of the settings, its fields with the metadata of `masp.config.schema.rule`; a field may be
            a dataclass of settings itself.
        path: a YAML file, or None for the defaults alone. Its key `base` names a file, relative to its own folder,
            whose settings it starts from.
        overrides: `key=value`, the key dotted and the value as in YAML; the last one of a key wins.
        check_together: checks what concerns more than one value; gets the settings and what to call their source.

    Returns:
        The settings; every value has the type of its field and lies in its range.

    Raises:
        InputError: a file is missing or no YAML, a key is unknown, a value is not valid, or a required setting is
            missing. One line that names file, key, value and what would be valid.
    """
    from omegaconf import OmegaConf

    layers = [] if path is None else _read_files(Path(path), root)
    layers.append(_read_overrides(overrides, root))
    merged = OmegaConf.merge(OmegaConf.structured(root), *layers)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        where = _COMMAND_LINE if path is None else str(path)
        raise InputError(
            f"{where}: {' and '.join(missing)} must be given, in the file or as {missing[0]}=… on the command line"
        )
    settings = OmegaConf.to_object(merged)
    if check_together is not None:
        check_together(settings, _COMMAND_LINE if path is None else str(path))
    return settings


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration so that reading it gives an equal one.

    Args:
        config: what to write: a `Config`, or other settings.
        path: the file. It appears complete or not at all.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(dump_yaml(dataclasses.asdict(config)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_files(path: Path, root: type) -> list[dict[str, Any]]:
    """The checked settings of a file and of those it builds on, the deepest base first."""
    layers: list[dict[str, Any]] = []
    seen: list[Path] = []
    while path is not None:
        if path.resolve() in seen:
            raise InputError(f"{path}: {_BASE} leads back to this file")
        seen.append(path.resolve())
        tree, lines = parse_yaml(_read_text(path), str(path))
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            raise InputError(f"{path}: must hold 'key: value' lines, not {_shown(tree)}")
        base = tree.pop(_BASE, None)
        if base is not None and not isinstance(base, str):
            raise InputError(f"{_place(str(path), lines, _BASE)}: {_BASE} = {_shown(base)}: must be the path of a file")
        layers.insert(0, _check_tree(tree, str(path), lines, root))
        path = None if base is None else path.parent / base
    return layers


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this configuration file: {error.strerror}") from None


def _read_overrides(overrides: Sequence[str], root: type) -> dict[str, Any]:
    """The checked tree of all `key=value` arguments."""
    rules = config_rules(root)
    tree: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"{_COMMAND_LINE}: {override!r} must be key=value, for example seed=1")
        rule = rules.get(name)
        value = _override_value(text.strip(), rule, name)
        single: Any = value
        for part in reversed(name.split(".")):
            single = {part: single}
        _merge(tree, _check_tree(single, _COMMAND_LINE, {}, root))
    return tree


def _override_value(text: str, rule: Rule | None, name: str) -> Any:
    """The value that an override means: YAML, but a setting that is text takes the characters as they stand."""
    as_it_stands = rule is not None and rule.kind is str and text[:1] not in ("'", '"', "[", "{", "")
    if as_it_stands and text not in ("null", "~"):
        return text
    return parse_yaml(text, f"{_COMMAND_LINE}: {name}")[0]


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def _check_tree(tree: dict[str, Any], source: str, lines: dict[str, int], root: type) -> dict[str, Any]:
    """Check every key and value that a source gives.

    Args:
        tree: nested settings.
        source: what to call the source in errors.
        lines: the line of each key there.
        root: the dataclass of the settings.

    Returns:
        The tree with each value in the type of its field.
    """
    rules, sections = config_rules(root), config_sections(root)

    def walk(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        checked = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            where = _place(source, lines, name)
            if "." in key:
                raise InputError(f"{where}: {name!r} must be nested: '{key.partition('.')[0]}:', and the rest below it")
            if name in sections:
                # A file's `stage1:` with nothing under it changes nothing.
                if not isinstance(value, dict) and not (value is None and source != _COMMAND_LINE):
                    example = next(known for known in rules if known.startswith(f"{name}."))
                    raise InputError(f"{where}: {name} = {_shown(value)}: must hold settings such as {example}")
                checked[key] = walk(value or {}, f"{name}.")
            elif name in rules:
                checked[key] = value if value == REQUIRED else _check_value(rules[name], value, where)
            else:
                raise InputError(
                    f"{where}: unknown key {name!r}: {_suggestion(name, prefix, list(rules), list(sections))}"
                )
        return checked

    return walk(tree, "")


def _check_value(rule: Rule, value: Any, where: str) -> Any:
    try:
        return rule.check(value)
    except ValueError as error:
        raise InputError(f"{where}: {rule.name} = {_shown(value)}: {error}") from None


def _suggestion(name: str, prefix: str, known: list[str], sections: list[str]) -> str:
    """What the user may have meant by an unknown key."""
    here = [other for other in known if other.startswith(prefix) and "." not in other[len(prefix) :]]
    if not prefix:
        here += [section for section in sections if section]
    same_leaf = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    close = (
        difflib.get_close_matches(name, here, n=1, cutoff=0.75)
        or same_leaf
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    )
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid here are {', '.join(here)}"


def _check_together(config: Config, where: str) -> None:
    """The rules that concern more than one value."""
    low, high = config.vlm.min_pixels, config.vlm.max_pixels
    if low is not None and high is not None and low > high:
        raise InputError(f"{where}: vlm.min_pixels = {low}: must be at most vlm.max_pixels, which is {high}")
    if not config.stage2.vision_features and (not config.aspects or config.checkpoint.aspect == "none"):
        key = "checkpoint.aspect = none" if config.aspects else "aspects = []"
        raise InputError(
            f"{where}: stage2.vision_features = false: with {key} nothing of the picture would be left in the prompt"
        )
    categories = config.dataset.categories
    if categories is not None:
        words = [normalise_category(category) for category in categories]
        if not words or "" in words or len(set(words)) < len(words):
            raise InputError(
                f"{where}: dataset.categories = {_shown(categories)}: must name one or more different categories "
                f"(case and underscores make no difference), or be null"
            )


def _place(source: str, lines: dict[str, int], name: str) -> str:
    return f"{source} line {lines[name]}" if name in lines else source


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
