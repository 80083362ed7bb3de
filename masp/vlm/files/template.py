"""The chat templates in a VLM's directory, and how a question, an image and an answer look in one.

A template may be in four files. It is asked with the content of a turn as a string where there is only text, and if it
cannot take that, with every content as a list of parts. Everything that a prompt is made of must then be in its text,
in order. Templates of models that think before they answer are told not to.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.errors import InputError, one_line
from masp.files.json_text import parse_json
from masp.files.regular import read_bytes
from masp.files.text import MAX_REASON, shortened, shown
from masp.vlm.files import render_template
from masp.vlm.files.directory import KEY, PROCESSOR, TOKENIZER, read_json

SYSTEM = "You are a helpful assistant."
QUESTION, ANSWER = "QUESTION", "ANSWER"
"""What stands for them while a template is examined."""
WALL_S = 60
"""Seconds after which a rendering is given up; the limit of its CPU time is far lower, a network disk may be slow."""


@dataclass(frozen=True)
class Turn:
    """The text of one turn, cut where its pieces are."""

    before: str
    """All that is before the image, a system text included."""
    between: str
    """From the image to the question."""
    closing: str
    """From the question to the answer."""
    lead: str
    """White space that belongs to the answer, of templates that ask for one without it."""
    tail: str
    """Behind the answer; empty where the template writes nothing there."""
    without_image: str
    """The prompt for the question alone."""


def chat_turn(directory: Path, image: str, tokens: dict[str, str], has_system: bool) -> Turn:
    """Render the VLM's chat template.

    Args:
        directory: Directory of the VLM.
        image: The text that stands for an image.
        tokens: Special tokens by name (`eos_token` …), which a template may use.
        has_system: Whether the prompt opens with a system turn of `SYSTEM`; else with what the template writes.

    Raises:
        InputError: No template was found, it cannot be rendered within the limits, or a piece of the prompt is not in
            its text; or two files have templates that write different prompts.
    """
    found: dict[str, Turn] = {}
    failures: list[str] = []
    for file, template in _templates(directory).items():
        turn = _examined(f"{KEY}: {directory / file}", template, image, tokens, has_system)
        if isinstance(turn, Turn):
            found[file] = turn
        else:
            failures.append(f"{KEY}: the chat template in {directory / file} {turn}")
    if not found:
        raise InputError(
            failures[0]
            if failures
            else f"{KEY}: {directory} has no chat template (chat_template.jinja or chat_template.json)"
        )
    (first, turn), *others = found.items()
    for file, other in others:
        if other != turn:
            raise InputError(
                f"{KEY}: {directory}: {first} and {file} have chat templates that write different prompts; keep one"
            )
    return turn


def _templates(directory: Path) -> dict[str, str]:
    """File -> the chat template in it. Named alternatives, for tools say, are left out on purpose."""
    found: dict[str, Any] = {}
    data = read_bytes(directory / "chat_template.jinja", max_bytes=render_template.MAX_CHARACTERS, key=KEY)
    if data is not None:
        found["chat_template.jinja"] = data.decode(errors="replace")
    for file in ("chat_template.json", PROCESSOR, TOKENIZER):
        found[file] = (read_json(directory, file) or {}).get("chat_template")
    for file, template in found.items():
        if isinstance(template, list):  # [{"name": "default", "template": …}, …]
            named = [one for one in template if isinstance(one, dict)]
            found[file] = next((one.get("template") for one in named if one.get("name") == "default"), None)
        elif isinstance(template, dict):
            found[file] = template.get("default")
        else:
            continue
        if found[file] is None:
            raise InputError(f"{KEY}: {directory / file}: chat_template: none of its templates is named 'default'")
    for file, template in found.items():
        if template is not None and not isinstance(template, str):
            raise InputError(f"{KEY}: {directory / file}: chat_template = {shown(template)}: must be a string")
    return {file: template for file, template in found.items() if template}


def _examined(what: str, template: str, image: str, tokens: dict[str, str], has_system: bool) -> Turn | str:
    """The turn that a template writes, or what is wrong with it."""
    problems = []
    results = parse_json(_rendered(what, template, json.dumps(tokens), has_system))
    for asked, answered, alone in (results[:3], results[3:]):  # content as strings, then as parts
        if failed := next((result["error"] for result in (asked, answered, alone) if "error" in result), None):
            kind, _, message = failed.partition(": ")
            problems.append(
                f"cannot be used: {shortened(one_line((message.strip() or kind).splitlines()[0]), MAX_REASON)}"
            )
            continue
        turn = _cut(asked["text"], answered["text"], alone["text"], image, has_system)
        if isinstance(turn, Turn):
            return turn
        problems.append(turn)
    # a template that takes strings says more about itself there
    return problems[0]


def _cut(asked: str, answered: str, alone: str, image: str, has_system: bool) -> Turn | str:
    """Find the pieces of a prompt in its text, each once and in order."""
    pieces = {"the system text": SYSTEM} if has_system else {}
    pieces |= {"the image": image, "the question": QUESTION}
    texts, rest = [], asked
    for name, piece in pieces.items():
        before, found, rest = rest.partition(piece)
        if not found:
            return f"does not write {name} ({shown(piece)}) where it belongs"
        texts.append(before)
    if double := next((name for name, piece in pieces.items() if asked.count(piece) > 1), None):
        return f"writes {double} more than once"
    if not rest:
        return "writes nothing between the question and the answer"
    before, found, tail = answered.partition(ANSWER)
    if not found or (before.startswith(asked) and before[len(asked) :].strip()):
        return f"does not write the answer ({shown(ANSWER)}) where it belongs"
    if not (before.startswith(asked) or asked.startswith((before, before.rstrip()))):
        return "does not write its generation prompt before an answer"
    opening = texts[0] + SYSTEM + texts[1] if has_system else texts[0]
    return Turn(opening, texts[-1], rest, before[len(asked) :], tail, alone)


@functools.lru_cache(maxsize=64)
def _rendered(what: str, template: str, tokens: str, has_system: bool) -> str:
    """Results of the renderings of a template, in a process of its own, with strings and then with parts.

    Each time asked, answered, and asked without an image.

    Raises:
        InputError: It took more time or memory than it may.
    """
    calls = []
    for as_parts in (False, True):

        def content(text: str, as_parts: bool = as_parts) -> Any:
            return [{"type": "text", "text": text}] if as_parts else text

        opening = [{"role": "system", "content": content(SYSTEM)}] if has_system else []
        user = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        asked = [*opening, {"role": "user", "content": user}]
        answered = [*asked, {"role": "assistant", "content": content(ANSWER)}]
        alone = [*opening, {"role": "user", "content": content(QUESTION)}]
        calls += [
            {"messages": asked, "add_generation_prompt": True, "enable_thinking": False},
            {"messages": answered, "add_generation_prompt": False, "enable_thinking": False},
            {"messages": alone, "add_generation_prompt": True, "enable_thinking": False},
        ]
    request = json.dumps({"template": template, "tokens": parse_json(tokens), "calls": calls})
    try:
        # -P: nothing is imported from the working directory
        child = subprocess.run(
            [sys.executable, "-P", render_template.__file__],
            input=request.encode(), capture_output=True, timeout=WALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        child = None
    except OSError as error:
        raise InputError(f"{what}: the chat template cannot be rendered: {error}") from None
    if child is None or child.returncode or not child.stdout:
        raise InputError(
            f"{what}: the chat template cannot be rendered within {render_template.CPU_S} s of CPU time and "
            f"{render_template.MEMORY_BYTES >> 30} GB of memory"
        )
    return child.stdout.decode()
