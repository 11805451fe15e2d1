// The loops that touch every parameter of a model: exact fixed-point sums of updates, and their inverse.
//
// Plain C++ on pointers; the caller has checked lengths and that nothing overlaps. Pointers to elements may be
// unaligned: elements are read and written with memcpy, which compiles to the machine's unaligned moves.
//
// Every variant gives the same bits: only +, -, *, / and conversions of IEEE doubles and floats, rounding to nearest
// even, in an order that is fixed for each element. The bindings reset the floating-point environment around each call,
// so that a library that flushes denormals or changes the rounding mode has no say.
#pragma once

#include <cstddef>
#include <cstdint>

namespace federation {

// Element types. The names are those of NumPy.
enum class Dtype : int {
    boolean, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, bfloat16, float32, float64, count
};

// What a pass over the elements of one array found.
struct Findings {
    double peak;  // the largest magnitude; infinity where a scaled difference of finite values overflowed
    bool finite;  // no value was NaN or infinite
};

// Radix of the wide sums: limb l of a sum counts for 2^(40 l).
constexpr int limb_bits = 40;
// The largest magnitude that one 64-bit limb takes at a time.
constexpr double limb_limit = 2305843009213693952.0;  // 2^61

// One set of kernels, compiled for one instruction set.
struct Kernels {
    // total[i] += rint(x) with x = (values[i] - start[i]) * factor, where |x| <= limit; elsewhere nothing is added.
    // The peak is over the elements whose value is finite. A `fresh` total counts as zero, and is not read.
    using Accumulate = Findings (*)(std::int64_t* total, const void* values, const void* start, std::size_t n,
                                    double factor, double limit, bool fresh);
    // The same with |x| up to limb_limit * 2^(40 (limb_count - 1)), spread over limbs. All or nothing: returns false,
    // with the limbs as they were, where an element is larger or not finite.
    using AccumulateWide = bool (*)(std::int64_t* const* limbs, std::size_t limb_count, const void* values,
                                    const void* start, std::size_t n, double factor);
    // out[i] = start[i] + sum * scale / divisor, rounded once to the element type; `out` may be `start`.
    using Finish = void (*)(void* out, const void* start, const std::int64_t* const* limbs, std::size_t limb_count,
                            std::size_t n, double scale, double divisor);
    // y[i] += a * x[i] in the arithmetic of y; x is converted to the type of y first.
    using AxpyFloat = void (*)(float* y, const void* x, std::size_t n, float a);
    using AxpyDouble = void (*)(double* y, const void* x, std::size_t n, double a);
    // The largest magnitude of the finite elements (0 where there are none), and whether all are finite.
    using Examine = Findings (*)(const void* values, std::size_t n);
    // The sum of (values[i] - start[i])^2, eight lanes wide in blocks, blocks in sequence.
    using SquaredDistance = double (*)(const void* values, const void* start, std::size_t n);

    struct Row {
        Accumulate accumulate;
        AccumulateWide accumulate_wide;
        Finish finish;
        AxpyFloat axpy_float32;
        AxpyDouble axpy_float64;
        Examine examine;
        SquaredDistance squared_distance;
    };
    Row rows[static_cast<int>(Dtype::count)];
};

namespace portable { const Kernels& kernels(); }
namespace avx2 { const Kernels& kernels(); }
namespace avx512 { const Kernels& kernels(); }

}  // namespace federation
