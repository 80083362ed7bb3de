"""The command line of MASP: `main.py` dispatches, every command is a module of its own.

A command module has `register(commands)`, which adds the parser, and `run(arguments)`, which does the work, returns the
exit code and imports whatever is heavy: after the configuration, whose mistakes are then reported at once.
"""
