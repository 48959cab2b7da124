"""The journal's checksum in plain Python: the oracle of `ext/tiercel/_hot/record.h`."""

from __future__ import annotations

K0, K1, K2 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93
MASK = (1 << 64) - 1


def fold(a, b):
    """The halves of a 128-bit product, xored."""
    product = a * b
    return (product ^ product >> 64) & MASK


def checksum(words, seed):
    """Of uint64 words."""
    words = [int(word) for word in words]
    a, b, n = seed ^ K0, seed ^ K1, len(words)
    i = 0
    while i + 4 <= n:
        a = fold(words[i] ^ K2, words[i + 1] ^ a)
        b = fold(words[i + 2] ^ K0, words[i + 3] ^ b)
        i += 4
    for word in words[i:]:
        a = fold(word ^ K2, a ^ K1)
    return fold(a ^ K0 ^ n, b ^ K2)
