"""A client's change of the model in fewer bytes, at some loss; what is lost is the same in every mode.

The change is what training has made of the global weights. All that is added up, and all that a rule sees, is the change as
a receiver decodes it, so that a run on one machine shows what compression costs, and gives the bits of a run over a network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import ml_dtypes
import msgspec
import numpy as np

from federation.core.weights import Weights
from federation.errors import UpdateError

CodecName = Literal["none", "float16", "bfloat16", "int8", "topk"]


class Compression(msgspec.Struct, frozen=True):
    """How updates are compressed. `fraction` is the share of the values that topk sends."""

    codec: CodecName = "none"
    fraction: float = 0.01

    def __bool__(self) -> bool:
        return self.codec != "none"


class Codec(ABC):
    """Writes float32 vectors, one for each array of a model, as bytes. The sizes of the vectors fix the number of bytes."""

    #: Whether what is left out is to be added to the client's next change (error feedback, Seide et al. 2014).
    feeds_back = False

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What `encode` returns, in bytes."""

    @abstractmethod
    def encode(self, changes: Sequence[np.ndarray], draws: np.random.Generator) -> bytes:
        """The finite `changes` as bytes."""

    @abstractmethod
    def decode(self, data: np.ndarray) -> list[np.ndarray]:
        """What `data` (uint8, `nbytes` long) says of each vector; owned by the caller. Raises ValueError for nonsense."""


class Float16(Codec):
    """Half precision, each array scaled by a power of two so that its largest value is near half precision's largest."""

    #: Values are below 2**15 in magnitude; half precision goes to 65504.
    TOP = 15

    @property
    def nbytes(self) -> int:
        """See Codec."""
        return sum(2 + 2 * size for size in self._sizes)

    def encode(self, changes: Sequence[np.ndarray], draws: np.random.Generator) -> bytes:
        """See Codec."""
        parts = []
        for change in changes:
            shift = self.TOP - math.frexp(float(np.abs(change).max(initial=0)))[1]
            parts += [np.array(shift, "<i2").tobytes(), np.ldexp(change, shift).astype("<f2").tobytes()]
        return b"".join(parts)

    def decode(self, data: np.ndarray) -> list[np.ndarray]:
        """See Codec."""
        found, begin = [], 0
        for size in self._sizes:
            shift, values = int(data[begin:begin + 2].view("<i2")[0]), data[begin + 2:begin + 2 + 2 * size].view("<f2")
            found.append(np.ldexp(values.astype(np.float32), -shift))
            begin += 2 + 2 * size
        return found


class BFloat16(Codec):
    """The upper half of a float32: 8 bits of precision, and its whole range."""

    @property
    def nbytes(self) -> int:
        """See Codec."""
        return 2 * sum(self._sizes)

    def encode(self, changes: Sequence[np.ndarray], draws: np.random.Generator) -> bytes:
        """See Codec."""
        return b"".join(change.astype(ml_dtypes.bfloat16).tobytes() for change in changes)

    def decode(self, data: np.ndarray) -> list[np.ndarray]:
        """See Codec."""
        return [part.astype(np.float32) for part in _split(data.view(ml_dtypes.bfloat16), self._sizes)]


class Int8(Codec):
    """Integers from -127 to 127 in blocks with a scale each, rounded up or down at random so that the mean is right.

    Stochastic quantisation as in QSGD (Alistarh et al. 2017), with the largest magnitude of a block as its scale.
    """

    BLOCK = 2048
    TOP = np.float32(127)

    @property
    def nbytes(self) -> int:
        """See Codec."""
        return sum(4 * self._blocks(size) + size for size in self._sizes)

    def encode(self, changes: Sequence[np.ndarray], draws: np.random.Generator) -> bytes:
        """See Codec."""
        parts = []
        for change in changes:
            blocks = np.zeros((self._blocks(change.size), self.BLOCK), np.float32)
            blocks.reshape(-1)[:change.size] = change
            scales = np.abs(blocks).max(axis=1, keepdims=True)
            # Divided first: 127 times the largest float32 is infinite.
            steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0) * self.TOP
            rounded = np.floor(steps + draws.random(blocks.shape, np.float32))
            parts += [scales.astype("<f4").tobytes(),
                      np.clip(rounded, -self.TOP, self.TOP).astype(np.int8).reshape(-1)[:change.size].tobytes()]
        return b"".join(parts)

    def decode(self, data: np.ndarray) -> list[np.ndarray]:
        """See Codec."""
        found, begin = [], 0
        for size in self._sizes:
            values = begin + 4 * self._blocks(size)
            steps = data[begin:values].view("<f4").astype(np.float32) / self.TOP
            with np.errstate(over="ignore"):  # 127 steps of the largest float32 may be rounded to infinity
                steps = np.where(np.isinf(steps * self.TOP), np.nextafter(steps, np.float32(0)), steps)
            found.append(np.repeat(steps, self.BLOCK)[:size] * data[values:values + size].view(np.int8))
            begin = values + size
        return found

    def _blocks(self, size: int) -> int:
        return -(-size // self.BLOCK)


class TopK(Codec):
    """The values of largest magnitude in the whole model, with their places; of equals, those that come first.

    Sparsified training as in Aji and Heafield 2017; what is left out comes later (error feedback, Stich et al. 2018).
    """

    feeds_back = True

    def __init__(self, sizes: Sequence[int], fraction: float) -> None:
        super().__init__(sizes)
        self._total = sum(sizes)
        self._count = min(self._total, max(1, math.ceil(fraction * self._total)))
        self._places = np.dtype("<u4" if self._total <= 2**32 else "<u8")

    @property
    def nbytes(self) -> int:
        """See Codec."""
        return self._count * (self._places.itemsize + 4)

    def encode(self, changes: Sequence[np.ndarray], draws: np.random.Generator) -> bytes:
        """See Codec."""
        change = np.concatenate([np.empty(0, np.float32), *changes])
        size = np.abs(change)
        chosen = np.arange(self._total)
        if self._count < self._total:
            smallest = np.partition(size, self._total - self._count)[self._total - self._count]
            above = np.flatnonzero(size > smallest)
            equal = np.flatnonzero(size == smallest)[:self._count - above.size]
            chosen = np.sort(np.concatenate([above, equal]))
        return chosen.astype(self._places).tobytes() + change[chosen].astype("<f4").tobytes()

    def decode(self, data: np.ndarray) -> list[np.ndarray]:
        """See Codec."""
        split = self._count * self._places.itemsize
        places = data[:split].view(self._places)
        if places.size and (places[-1] >= self._total or (places[1:] <= places[:-1]).any()):
            raise ValueError(f"places that do not ascend below {self._total}")
        whole = np.zeros(self._total, np.float32)
        whole[places] = data[split:].view("<f4")
        return _split(whole, self._sizes)


class Packed(NamedTuple):
    """A packed update: what travels (uint8), the arrays that its receiver gets, and what was left out, where that counts."""

    data: np.ndarray
    arrays: list[np.ndarray]
    rest: np.ndarray | None


class Packing:
    """Updates of the weights `start` (borrowed) in bytes.

    Parameters are encoded; the other arrays travel as they are; those at the indices `without` do not travel, and are the
    start's on arrival. `nbytes` is what every update takes.
    """

    def __init__(self, compression: Compression, start: Weights, without: Collection[int] = ()) -> None:
        layout = start.layout
        self._start = start
        self._encoded = [index for index in layout.parameters if index not in without]
        self._plain = [index for index in range(len(layout)) if index not in self._encoded and index not in without]
        self._sizes = [start[index].size for index in self._encoded]
        self._codec = _codec(compression, self._sizes)
        self.nbytes = self._codec.nbytes + sum(start[index].nbytes for index in self._plain)

    def pack(self, client_id: str, arrays: Sequence[np.ndarray], draws: np.random.Generator,
             rest: np.ndarray | None = None) -> Packed | None:
        """Pack `arrays`, in the order of the layout and of its shapes; `rest` is what was left out the last time (float32,
        one value for each of a parameter). None where a value is not finite, which is for others to say.

        Raises UpdateError for changes that float32 does not hold.
        """
        changes = [_difference(arrays[index], self._start[index]) for index in self._encoded]
        if self._codec.feeds_back and rest is not None:
            for change, left in zip(changes, _split(rest, self._sizes), strict=True):
                change += left
        if not all(np.isfinite(change).all() for change in changes):
            if all(np.isfinite(np.asarray(array, np.float64)).all() for array in arrays):
                raise UpdateError(f"{client_id}: it is too far from the global weights for trainer_config.compression, "
                                  "which works in float32")
            return None
        plain = b"".join(np.ascontiguousarray(arrays[index], self._start[index].dtype).tobytes() for index in self._plain)
        data = np.frombuffer(self._codec.encode(changes, draws) + plain, np.uint8)
        decoded = self._codec.decode(data[:self._codec.nbytes])
        left_out = None
        if self._codec.feeds_back:
            left_out = np.concatenate([np.empty(0, np.float32), *(change - sent for change, sent in
                                                                  zip(changes, decoded, strict=True))])
        return Packed(data, self._arrived(decoded, data), left_out)

    def unpack(self, client_id: str, data: np.ndarray) -> list[np.ndarray]:
        """The arrays of an update from `data` (uint8, `nbytes` long): new ones, or the start's where nothing travels.

        Raises UpdateError for what no `pack` can have made. Values may be NaN or infinite.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # bytes of a stranger may be any numbers
                return self._arrived(self._codec.decode(data[:self._codec.nbytes]), data)
        except ValueError as error:
            raise UpdateError(f"{client_id} sent an update that cannot be unpacked: {error}") from error

    def _arrived(self, decoded: Sequence[np.ndarray], data: np.ndarray) -> list[np.ndarray]:
        arrays = list(self._start)
        for index, change in zip(self._encoded, decoded, strict=True):
            arrays[index] = _moved(self._start[index], change)
        begin = self._codec.nbytes
        for index in self._plain:
            like = self._start[index]
            part = np.empty(like.shape, like.dtype)
            part.reshape(-1).view(np.uint8)[:] = data[begin:begin + like.nbytes]
            arrays[index] = part
            begin += like.nbytes
        return arrays


def _codec(compression: Compression, sizes: Sequence[int]) -> Codec:
    match compression.codec:
        case "float16":
            return Float16(sizes)
        case "bfloat16":
            return BFloat16(sizes)
        case "int8":
            return Int8(sizes)
        case "topk":
            return TopK(sizes, compression.fraction)
    raise ValueError(f"{compression.codec!r} packs nothing")


def _split(vector: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(vector, np.cumsum(sizes)[:-1]) if sizes else []


def _difference(array: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Flat, float32, and infinite where that does not hold it."""
    wide = np.float32 if array.dtype == start.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        return np.subtract(array, start, dtype=wide).astype(np.float32, copy=False).reshape(-1)


def _moved(start: np.ndarray, change: np.ndarray) -> np.ndarray:
    wide = np.float32 if start.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(start, change.reshape(start.shape), dtype=wide).astype(start.dtype, copy=False)
