"""Write the tables of docs/configuration.md and docs/cluster.md from the dataclasses of the settings.

    python tools/config_reference.py

With --check it writes nothing and exits with 1 if a table is out of date.
"""

import argparse
import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import launch.job.config
import masp.config.schema
from masp.config.fields import Setting, describe_settings, sections

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENTS = {
    DOCS / "configuration.md": masp.config.schema.Config,
    DOCS / "cluster.md": launch.job.config.ClusterConfig,
}
BEGIN = "<!-- begin: written by tools/config_reference.py -->"
END = "<!-- end -->"


def field_docs(root: type) -> dict[str, dict[str, str]]:
    """The docstring of every field of every dataclass in the module of `root`, by class name and field name."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[root.__module__])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = docs.setdefault(node.name, {})
        for field, following in zip(node.body, node.body[1:], strict=False):
            is_docstring = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_docstring:
                fields[field.target.id] = " ".join(following.value.value.split())
    return docs


def reference(root: type) -> str:
    """The tables of all settings of a configuration, in Markdown."""
    docs = field_docs(root)
    parts = []
    for section, kind in {"": root, **sections(root)}.items():
        parts.append(f"### {f'`{section}`' if section else 'Top level'}\n\n{inspect.getdoc(kind)}\n")
        parts.append("| key | default | valid | what it does |\n|---|---|---|---|")
        for name, setting in describe_settings(root).items():
            of, _, leaf = name.rpartition(".")
            if of == section:
                text = next(docs[base.__name__][leaf] for base in kind.__mro__ if leaf in docs.get(base.__name__, {}))
                parts.append(f"| `{name}` | {_default(setting)} | {setting.valid} | {text} |")
        parts.append("")
    return "\n".join(parts)


def updated(document: str, root: type) -> str:
    """The document with up-to-date tables between its two markers."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference(root)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    check = parser.parse_args(arguments).check
    for path, root in DOCUMENTS.items():
        document = path.read_text(encoding="utf-8")
        current = updated(document, root)
        if check and current != document:
            print(f"error: {path} is out of date: run python tools/config_reference.py", file=sys.stderr)
            return 1
        if not check:
            path.write_text(current, encoding="utf-8")
    return 0


def _default(setting: Setting) -> str:
    return "required" if setting.default is dataclasses.MISSING else f"`{_yaml(setting.default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
