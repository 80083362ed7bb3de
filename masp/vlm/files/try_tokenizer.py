"""Tries a tokenizer out in a process of its own: run as a file, never imported.

The steps of a tokenizer came with the VLM: regular expressions that may take for ever on some text, and replacements
that may make a gigabyte of one letter. Neither can be stopped from inside the process that runs them. So here they are
run, with limits that the operating system enforces, on texts of the kinds that questions and answers are made of.

Takes the path of a tokenizer.json; writes, as JSON to stdout, the first text that became more than `MAX_TOKENS` tokens
per character, or nothing of that kind, or what the tokenizers library says against the file.
"""

import json
import resource
import sys

CPU_S, MEMORY_BYTES = 15, 6 << 30
"""Limits of all trials together: CPU time and address space. The largest tokenizers take 3 s and 2 GB to load."""
LENGTHS = (100, 2000)
"""Characters of the texts."""
MAX_TOKENS = 8
"""Per character, which has at most 4 bytes, each of which may be a token of its own."""


def main() -> None:
    """Try the tokenizer in the file that the command line names."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tokenizers import Tokenizer

    try:
        json.dump(grown(Tokenizer.from_file(sys.argv[1])), sys.stdout)
    except Exception as error:  # the library has no list of what it raises
        json.dump({"error": f"{error}"[:1000]}, sys.stdout)


def grown(tokenizer) -> dict:
    """The first text that became too many tokens: its number of characters and of tokens; empty if none did."""
    for length in LENGTHS:
        for text in texts(length):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) > MAX_TOKENS * length:
                return {"characters": length, "tokens": len(ids)}
            tokenizer.decode(ids)
    return {}


def texts(length: int) -> list[str]:
    """Words; and each printable ASCII character again and again, with another behind, so that patterns try again."""
    printable = [chr(number) for number in range(32, 127)] + ["\n", "\u00e9", "\u4e2d"]
    repeated = [character * (length - 1) + ("!" if character != "!" else "a") for character in printable]
    words = "Which emotion does this image evoke? It's one of: joy, fear, 12 others.\n" * length
    return [*repeated, words[:length], ("aA1 .'s\n" * length)[:length]]


if __name__ == "__main__":
    main()
