"""One seed per purpose: every random choice has its own stream.

A stream's seed is a hash of its purpose, so that a new random choice does not change any other.
"""

from hashlib import sha256


def derive(purpose: str, seed: int, *parts: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose, e.g. `derive("shuffle", run.seed, epoch)`.

    The same arguments give the same seed on every machine and in every process; any other arguments give an
    unrelated one.
    """
    text = "/".join(["syncnorm", purpose, str(seed), *map(str, parts)])
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1
