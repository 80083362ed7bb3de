"""How files are written atomically, locked, and read. All other packages may import this one.

atomic    write a file so that a reader sees all of it or nothing
locks     POSIX record locks: of byte ranges, of a whole file
jsonl     JSON lines: append a line, read the complete ones
typed     decode JSON into frozen dataclasses, encode them
sealed    JSON objects that contain their own digest; digests of values and files
regular   read a regular file of bounded size, or the end of any; check whether a path exists
hdf5      read HDF5 files without trusting them, write strings for them
retry     retry reads that fail for a moment on shared disks
text      errors and values, short and on one line
"""
