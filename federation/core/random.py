"""Counter-based random streams: every draw in a run is a function of what it is for, never of what was drawn before.

A stream is named by (seed, purpose, round, client). The four are written out, hashed with SHA-256, and the digest seeds
a Philox generator, so streams are independent of each other, equal on every rank and platform, and need no state to be
saved. The same NumPy version draws the same numbers from them (NumPy keeps Philox itself fixed, but may improve, say,
how `Generator.normal` uses it). The global generators of NumPy, Python and torch are neither read nor written.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np


def stream(seed: int, purpose: str, round: int = 0, client: str | int = "") -> np.random.Generator:
    """A new generator at the beginning of the stream (seed, purpose, round, client).

    purpose: what is drawn, e.g. "cohort" or "shuffle". client: its id; 3 and "3" name the same client.
    Raises TypeError where `seed` or `round` is not an integer.
    """
    digest = _digest("stream", seed, purpose, round, client)
    # Its words are what SeedSequence makes of the number, but that it leaves out a last word of zero.
    words = np.frombuffer(digest, "<u4").astype(np.uint32)
    number = words if words[-1] else int.from_bytes(digest, "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(number)))


def stream_seed(seed: int, purpose: str, round: int = 0, client: str | int = "") -> int:
    """An integer from 0 to 2**63 - 1 for generators of other libraries, such as torch.Generator.manual_seed.

    Independent of what `stream` draws under the same name.
    """
    return int.from_bytes(_digest("seed", seed, purpose, round, client)[:8], "little") >> 1


def _digest(use: str, seed: int, purpose: str, round: int, client: str | int) -> bytes:
    for name, number in (("seed", seed), ("round", round)):
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TypeError(f"{name} must be an integer, not {number!r}")
    if isinstance(client, bool) or not (isinstance(client, str) or hasattr(client, "__index__")):
        raise TypeError(f"client must be text or an integer, not {client!r}")
    if not isinstance(purpose, str):
        raise TypeError(f"purpose must be text, not {purpose!r}")
    who = client if isinstance(client, str) else str(operator.index(client))
    parts = [part.encode() for part in ("federation", use, str(operator.index(seed)), purpose, str(operator.index(round)), who)]
    # The length keeps ("a", "bc") apart from ("ab", "c").
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()
