"""Sums of clients' updates, kept by each rank while its clients finish and reduced over ranks once a round.

An exact sum is an integer for every element, so that it does not depend on the order of the clients, on which rank
held which, or on how ranks are combined. With

    C   the power of two at or above the number of samples that the round plans,
    B   for each array, a power of two at least 2**10 times the largest magnitude of the global weights in it (and at
        least 1; 2**20 for integers and booleans, whose means are then exact before they are rounded),
    s   61 - log2(B),

a client with n samples adds ``rint((w - start) * n * 2**s / C)`` and the mean is ``start + sum * C / 2**s / N``, where
N is the sum of n. Rules that count clients otherwise put a real number of their own in the place of n, and another in
the place of n below N (see Contribution); buffers and integers keep n. One 64-bit integer takes differences up to about B; an array
of an update that goes beyond is written with further integers ("limbs", radix 2**40), which only the rounds that need
them allocate and reduce.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from federation import kernels
from federation.core.weights import Allocate, Arrays, Layout, Weights, aligned_empty, check_range, native_order, plain
from federation.errors import Diverged, RoundError, UpdateError
from node_comm.reduction import combine

Reduction = Literal["exact", "float32", "float64"]

#: The most samples that one client may report: products with them stay exact.
MAX_SAMPLES = 2**48
#: One limb, and the further ones that updates beyond the planned magnitude may need.
MAX_LIMBS = 5
#: Beyond this magnitude of the global weights (float64 only), or of what an update counts, scales would leave the range of float64.
MAX_START = 2.0**900


class Contribution(NamedTuple):
    """What one client counts in a mean: the result is ``start + sum(weight * (w - start)) / sum(divisor)``.

    Both are finite; the weight may have any sign, divisors add up to more than 0. The weighted mean of McMahan et al.
    2017 has ``weight = divisor = num_samples``.
    """

    weight: float
    divisor: float


class UpdateSum(ABC):
    """The weighted sum of one rank's updates in one round.

    num_samples, divisor: sums of what the updates count for: the former for buffers and integers, the latter for
    parameters (with `counts_all_alike` for every array). count: number of updates.
    Where `limbs` are replaced by a sum over ranks, the caller sets both to the sums over ranks too.
    """

    layout: Layout
    num_samples: int
    divisor: float
    count: int
    counts_all_alike = False

    def __init__(self, layout: Layout, start: Weights, total_samples: int, cohort_size: int,
                 allocate: Allocate | None = None) -> None:
        """`start` are the global weights of the round: borrowed, and not to change until `mean_into` or `reset`.

        total_samples: what the cohort is expected to report in all, at least 1; the same on all ranks.
        cohort_size: the most updates that are added on all ranks together.
        allocate: gives the memory of the limbs; by default ordinary memory.
        """
        self.layout = layout
        self._parameters = frozenset(layout.parameters)
        self._allocate = allocate or aligned_empty
        self._vectors: list[np.ndarray] = []  # all memory that was ever needed; those that are not in use are zero
        self._in_use = 0
        self._is_fresh = False  # the first vector stands for zeros, whatever it holds
        self.reset(start, total_samples, cohort_size)

    @property
    def limbs(self) -> list[np.ndarray]:
        """The vectors to be reduced over ranks by summation, each `layout.num_slots` long; they belong to this object."""
        if self._is_fresh:
            self._vectors[0].fill(0)
            self._is_fresh = False
        return self._vectors[:self._in_use]

    @property
    def num_limbs(self) -> int:
        """How many limbs there are."""
        return self._in_use

    def hand_over(self) -> list[tuple[np.ndarray | None, np.ndarray]]:
        """For each limb, what this rank gives to the sum over ranks (None: nothing was added), and where that is to be written."""
        first, *further = self._vectors[:self._in_use]
        given, self._is_fresh = None if self._is_fresh else first, False
        return [(given, first), *((limb, limb) for limb in further)]

    def reset(self, start: Weights, total_samples: int | None = None, cohort_size: int | None = None,
              peaks: Sequence[float] | None = None) -> None:
        """Begin a new round, on the same memory; the numbers stay what they were unless given.

        peaks: `start.peaks()`, where they are known already; the same on all ranks.
        Raises ValueError for another layout or numbers below 1, UpdateError where `start` is not finite.
        """
        if start.layout != self.layout:
            raise ValueError(f"the sum is for {self.layout}, but the weights are {start.layout}")
        if total_samples is not None:
            self._total_samples = _at_least_one("total_samples", total_samples)
        if cohort_size is not None:
            self._cohort_size = _at_least_one("cohort_size", cohort_size)
        self._start = start
        self._peaks = _peaks_of_start(self.layout.names, start.peaks() if peaks is None else peaks)
        self._log2_c = _log2_ceil(self._total_samples)
        self.num_samples = 0
        self.divisor = 0.0
        self.count = 0
        for vector in self._vectors[1:self._in_use]:
            vector.fill(0)
        self._in_use = min(self._in_use, 1)
        self._is_fresh = self._in_use > 0
        self.ensure_limbs(1)
        self._begin()

    def add(self, client_id: str, weights: Arrays, num_samples: int, contribution: Contribution | None = None) -> None:
        """Add the update of `client_id`: its `weights` after training, counted `num_samples` times.

        For a plain mean every client counts once: give 1. `contribution` replaces `num_samples` for parameters.
        Weights are read during the call only. They may have any memory order, byte order and width of float.
        All or nothing: where it raises, the sum is as it was.
        Raises Diverged where a value is NaN or infinite; UpdateError where names, shapes, dtypes, values or
        `num_samples` do not fit the model, or more than `cohort_size` updates are added.
        """
        count = check_num_samples(client_id, num_samples)
        weight, divisor = contribution or Contribution(count, count)
        given = self.layout.conform(weights, client_id)
        if not (abs(weight) < MAX_START and abs(divisor) < MAX_START):
            # A rule that weighs by the distance makes NaN of a NaN in the update, which is then what is wrong.
            for name, array in zip(self.layout.names, given, strict=True):
                if not np.isfinite(array.astype(np.float64)).all():
                    raise Diverged(client_id, name)
            raise UpdateError(f"{client_id}: its weight in the mean, {weight}, and its divisor, {divisor}, must be below "
                              f"{MAX_START:.3g}")
        if self.count >= self._cohort_size:
            raise UpdateError(f"{client_id}: {self.count} updates were added already, and the cohort has no more")
        shares = [float(weight if self._is_weighed(index) else count) for index in range(len(given))]
        if not (isinstance(weights, Weights) and weights.layout == self.layout and self._add_whole(weights, shares)):
            for name, array, dtype in zip(self.layout.names, given, self.layout.dtypes, strict=True):
                check_range(array, dtype, f"{client_id}: parameter {name!r}")
            self._add(client_id, given, shares)
        self.num_samples += count
        self.divisor += divisor
        self.count += 1

    def take_in(self, others: Sequence[np.ndarray]) -> None:
        """Add the first limbs of other ranks' sums to this one's."""
        if others:
            own = self._vectors[0]
            combine(others if self._is_fresh else [own, *others], own, "sum")
            self._is_fresh = False

    def mean_into(self, out: Weights) -> None:
        """Set `out` (which may be the start itself) to the weighted mean; means of integers are rounded to nearest.

        Raises RoundError, with `out` as it was, where no sample was counted.
        """
        if out.layout != self.layout:
            raise ValueError(f"the sum is for {self.layout}, but the mean would go into {out.layout}")
        if self.num_samples == 0:
            raise RoundError(f"the total number of samples is 0 ({self.count} updates were added): there is no mean")
        if not self.divisor > 0:
            raise RoundError(f"what the updates are divided by adds up to {self.divisor}: there is no mean")
        self._mean_into(out)

    def _divisor_of(self, index: int) -> float:
        """What the sum of one array is divided by."""
        return self.divisor if self._is_weighed(index) else float(self.num_samples)

    def _is_weighed(self, index: int) -> bool:
        """Whether an array counts by what the rule says, not by samples."""
        return self.counts_all_alike or index in self._parameters

    @abstractmethod
    def ensure_limbs(self, count: int) -> None:
        """Have at least `count` limbs, so that all ranks reduce the same number; new ones are zero."""

    @abstractmethod
    def _begin(self) -> None:
        """Set the scale of a new round."""

    @abstractmethod
    def _add(self, client_id: str, given: list[np.ndarray], shares: list[float]) -> None:
        """Add checked arrays, each counted `shares` times, or raise with the sum as it was."""

    def _add_whole(self, weights: Weights, shares: list[float]) -> bool:
        """Add all arrays of weights of this very layout in one go; false, with nothing added, where that cannot be."""
        return False

    @abstractmethod
    def _mean_into(self, out: Weights) -> None:
        """The mean over more than 0 samples."""

    def _use_one_more(self, dtype: np.dtype) -> None:
        """Append a vector of zeros to `limbs`: one of an earlier round, or a new one."""
        if self._in_use == len(self._vectors):
            vector = self._allocate(self.layout.num_slots * dtype.itemsize).view(dtype)
            vector.fill(0)
            self._vectors.append(vector)
        self._in_use += 1


class ExactSum(UpdateSum):
    """The sum as integers: limbs are int64, the first for differences of ordinary size, the others 2**40 apart."""

    def ensure_limbs(self, count: int) -> None:
        """Have at least `count` limbs (1 to 5), so that all ranks reduce the same number; new ones are zero."""
        if not 0 <= count <= MAX_LIMBS:
            raise ValueError(f"an exact sum has 1 to {MAX_LIMBS} limbs, not {count}")
        while self._in_use < count:
            self._use_one_more(np.dtype(np.int64))

    def _begin(self) -> None:
        self._exponents = [_exponent(peak, dtype)
                           for peak, dtype in zip(self._peaks, self.layout.dtypes, strict=True)]
        self._shifts = np.array(self._exponents, np.int64) - self._log2_c
        self._limit = kernels.LIMB_LIMIT / 2.0 ** _log2_ceil(self._cohort_size)

    @functools.cached_property
    def _places(self) -> kernels.Places:
        layout = self.layout
        return kernels.Places(layout.dtypes, [math.prod(shape) for shape in layout.shapes], layout.offsets,
                              [where.start for where in layout.value_slices])

    def _add_whole(self, weights: Weights, shares: list[float]) -> bool:
        is_done = kernels.accumulate_model(self._vectors[0], weights.buffer, self._start.buffer, self._places,
                                           np.ldexp(shares, self._shifts), self._limit, fresh=self._is_fresh)
        self._is_fresh = self._is_fresh and not is_done
        return is_done

    def _add(self, client_id: str, given: list[np.ndarray], shares: list[float]) -> None:
        undo: list[Callable[[], object]] = []
        try:
            for index, array in enumerate(given):
                self._add_array(client_id, index, array, shares[index], undo)
        except UpdateError:
            for take_back in undo:
                take_back()
            raise

    def _add_array(self, client_id: str, index: int, array: np.ndarray, share: float,
                   undo: list[Callable[[], object]]) -> None:
        values, start = comparable(array, self._start[index])
        factor = math.ldexp(share, self._exponents[index] - self._log2_c)
        first = self._parts(index, 1)[0]
        found = kernels.accumulate(first, values, start, factor, self._limit)

        def take_back() -> None:
            kernels.accumulate(first, values, start, -factor, self._limit)

        if found.finite and found.peak <= self._limit:
            undo.append(take_back)
            return
        take_back()
        if not found.finite:
            raise Diverged(client_id, self.layout.names[index])
        # How many limbs an array is spread over depends on that array alone, never on what was added before.
        wanted = 1
        while found.peak > math.ldexp(self._limit, kernels.LIMB_BITS * (wanted - 1)):
            wanted += 1
            if wanted > MAX_LIMBS:
                raise UpdateError(f"{client_id}: parameter {self.layout.names[index]!r} holds a value of magnitude "
                                  f"{kernels.max_abs(values):.3g}, too far from the global weights to be averaged "
                                  f"exactly (their largest magnitude is {self._peaks[index]:.3g})")
        self.ensure_limbs(wanted)
        parts = self._parts(index, wanted)
        kernels.accumulate_wide(parts, values, start, factor)
        undo.append(lambda: kernels.accumulate_wide(parts, values, start, -factor))

    def _mean_into(self, out: Weights) -> None:
        for index, (target, start) in enumerate(zip(out, self._start, strict=True)):
            scale = math.ldexp(1.0, self._log2_c - self._exponents[index])
            kernels.finish(target, start, self._parts(index, len(self.limbs)), scale, self._divisor_of(index))

    def _parts(self, index: int, count: int) -> list[np.ndarray]:
        """The slices of the first `count` limbs that belong to one array."""
        where = self.layout.value_slices[index]
        return [limb[where] for limb in self.limbs[:count]]


class FloatSum(UpdateSum):
    """The sum in floating point: half the bytes in float32, and a result that may differ in the last bits.

    One vector of ``n / C * (w - start)``.
    """

    def __init__(self, layout: Layout, start: Weights, total_samples: int, cohort_size: int,
                 allocate: Allocate | None = None, dtype: str = "float64") -> None:
        """As for every sum; `dtype` is "float32" or "float64"."""
        if dtype not in ("float32", "float64"):
            raise ValueError(f"a floating-point sum is float32 or float64, not {dtype}")
        self._dtype = np.dtype(dtype)
        super().__init__(layout, start, total_samples, cohort_size, allocate)

    def ensure_limbs(self, count: int) -> None:
        """There is one vector, always."""
        if count > 1:
            raise ValueError(f"a floating-point sum has 1 vector, not {count}")
        if not self._in_use:
            self._use_one_more(self._dtype)

    def _add(self, client_id: str, given: list[np.ndarray], shares: list[float]) -> None:
        arrays = [plain(array) for array in given]
        for name, array in zip(self.layout.names, arrays, strict=True):
            if not kernels.all_finite(array):
                raise Diverged(client_id, name)
            check_range(array, self._dtype, f"{client_id}: parameter {name!r}")
        for index, array in enumerate(arrays):
            difference = np.subtract(array.reshape(-1), self._start[index].reshape(-1), dtype=np.float64)
            kernels.axpy(self._part(index), difference, math.ldexp(shares[index], -self._log2_c))

    def _begin(self) -> None:
        """There is no scale."""

    def _mean_into(self, out: Weights) -> None:
        for index, (array, begun) in enumerate(zip(out, self._start, strict=True)):
            target, start = array.reshape(-1), begun.reshape(-1)
            mean = self._part(index).astype(np.float64) * math.ldexp(1.0, self._log2_c) / self._divisor_of(index)
            if target.dtype.kind in "iu":
                high, low = np.divmod(np.rint(mean), 2.0**kernels.LIMB_BITS)  # it may be further than an int64 goes
                kernels.finish(target, start, [low.astype(np.int64), high.astype(np.int64)], 1.0, 1.0)
            else:
                mean += start
                if target.dtype.kind == "b":
                    np.greater(mean, 0.5, out=target)
                else:
                    np.copyto(target, mean, casting="unsafe")

    def _part(self, index: int) -> np.ndarray:
        """The slice of the vector that belongs to one array."""
        return self.limbs[0][self.layout.value_slices[index]]


def make_sum(reduction: Reduction, layout: Layout, start: Weights, *, total_samples: int, cohort_size: int,
             allocate: Allocate | None = None) -> UpdateSum:
    """The sum for `reduction`, as the configuration names it; see UpdateSum for the other arguments."""
    if reduction == "exact":
        return ExactSum(layout, start, total_samples, cohort_size, allocate)
    return FloatSum(layout, start, total_samples, cohort_size, allocate, dtype=reduction)


def check_num_samples(client_id: str, num_samples: object) -> int:
    """`num_samples` as an int; UpdateError naming the client unless it is an integer from 0 to 2**48."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, (int, np.integer)):
        raise UpdateError(f"{client_id}: num_samples must be an integer, not {num_samples!r}")
    if not 0 <= num_samples <= MAX_SAMPLES:
        raise UpdateError(f"{client_id}: num_samples must be from 0 to 2**48, not {num_samples}")
    return int(num_samples)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _log2_ceil(value: int) -> int:
    """The exponent of the power of two at or above `value`."""
    return (value - 1).bit_length()


def _peaks_of_start(names: Sequence[str], peaks: Sequence[float]) -> Sequence[float]:
    for name, peak in zip(names, peaks, strict=True):
        if not math.isfinite(peak):
            raise UpdateError(f"the global weights hold NaN or infinity in {name!r}: nothing can be averaged from there")
        if peak > MAX_START:
            raise UpdateError(f"the global weights hold {peak:.3g} in {name!r}, beyond {MAX_START:.3g}")
    return peaks


def _exponent(peak: float, dtype: np.dtype) -> int:
    """s of the module's docstring, for global weights of the largest magnitude `peak`."""
    if dtype.kind in "biu":
        return 61 - 20
    fraction, exponent = math.frexp(max(peak, 2.0**-10))
    log2_ceil = exponent - 1 if fraction == 0.5 else exponent
    return 61 - (log2_ceil + 10)


def comparable(array: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`array` and `start` in one dtype that holds the values of both; C order, no copy where none is needed."""
    if native_order(array.dtype) == start.dtype:
        return plain(array), start
    if start.dtype.kind in "biu":
        return plain(array.astype(start.dtype)), start
    return plain(array.astype(np.float64)), start.astype(np.float64)
