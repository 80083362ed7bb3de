"""What a process needs while it runs: its device, its run directory, its messages, and when to stop.

devices        `auto`, `cpu`, `cuda`; number formats; running out of memory
log            results to stdout, notes to stderr
parent         the launcher that started it, and whether it is still there
run_directory  its `status.json`, and the lock that lets one run at a time write there
stop           signals, the file `STOP`, a time limit
background     work in a thread of its own
prefetch       items of a dataset, prepared ahead by worker processes
"""
