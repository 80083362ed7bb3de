"""How a file is written whole, locked, and read again. Everything else in MASP may import this package.

atomic    write a file so that a reader sees all of it or none
locks     POSIX record locks: byte ranges, one holder, is it held
jsonl     JSON lines: append one, read those that are whole
typed     decode JSON into frozen dataclasses, encode them again
sealed    JSON objects that carry their own digest; digests of values and files
regular   read a regular file of bounded size; does a path exist
retry     repeat what a shared disk fails for a moment
text      a foreign error or a value, short and on one line
"""
