"""BLAKE2b (RFC 7693), without loading OpenSSL: `hashlib` does, a megabyte that most processes of zq do without."""

from __future__ import annotations

try:
    from _blake2 import blake2b  # what hashlib.blake2b is
except ImportError:  # another Python than CPython
    from hashlib import blake2b

__all__ = ["blake2b"]
