"""The members of a tar."""

import zlib

import numpy as np

from masp.cache.codec import checksum


def test_checksum_is_crc32_whatever_library_computes_it():
    data = np.random.default_rng(0).integers(0, 256, 100_003, dtype=np.uint8).tobytes()
    for length in (0, 1, 7, 64, 4097, len(data)):
        assert checksum(data[:length]) == checksum(memoryview(data)[:length]) == zlib.crc32(data[:length])
