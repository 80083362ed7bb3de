"""Renders a chat template in a process of its own: run as a file, never imported.

A template is a program that came with the VLM. jinja's sandbox keeps it from Python's objects, but not from looping or
from making strings for ever, and neither can be stopped from inside the process that it runs in. So it gets one that
imports nothing but jinja, with limits that the operating system enforces.

Reads `{"template", "tokens", "calls": [{"messages", "add_generation_prompt"}]}` as JSON from stdin and writes a list of
`{"text"}` or `{"error"}`, one for each call. The environment is that of `apply_chat_template` in transformers.
"""

import json
import resource
import sys

CPU_S, MEMORY_BYTES, MAX_CHARACTERS = 5, 1 << 30, 1 << 20
"""Limits of all renderings of a template together: CPU time and address space; and of the text of each."""


def main() -> None:
    """Render what stdin asks for."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.load(sys.stdin)
    results = []
    for call in asked["calls"]:
        try:
            results.append({"text": render(asked["template"], {**asked["tokens"], **call})})
        except Exception as error:  # whatever the template does
            results.append({"error": f"{type(error).__name__}: {error}"[:MAX_CHARACTERS]})
    json.dump(results, sys.stdout)


def render(template: str, variables: dict) -> str:
    """The text of a template.

    Raises:
        Exception: Anything, if the template is not valid or asks for what is not allowed.
    """
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what the assistant said; here it is only text."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller):
            return caller()

    class PlainNamespace(Namespace):
        def __setitem__(self, name, value):
            if name.startswith("_"):
                raise SecurityError(f"a namespace may not have the attribute {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message):
        raise TemplateError(message)

    def strftime_now(_):
        raise TemplateError("it depends on the date, so the same question would give different prompts")

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": lambda *pairs, **named: dict(*pairs, **named),
        "namespace": PlainNamespace,
    }
    parts, length = [], 0
    for part in environment.from_string(template).generate(variables):
        parts.append(part)
        length += len(part)
        if length > MAX_CHARACTERS:
            raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
    return "".join(parts)


if __name__ == "__main__":
    main()
