"""`masp plan`: what a run will take, from image headers and the configuration alone.

headers -> tokens -> bytes (`volume`), FLOP and hours (`work`, `rates`), free space (`space`); beside what a finished
run took (`actual`). `command` puts it together, `text` prints it.
"""
