// Compiled once for each variant, with VARIANT naming it. Everything but the table has internal linkage, so that the
// linker never mixes code that was compiled for different instruction sets.
#include "kernels.hpp"

#include <cstring>
#include <limits>
#include <type_traits>

namespace federation {
namespace {

// ---- bits

template <class To, class From> inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

template <class T> inline T load(const void* array, std::size_t i) {
    T value;
    std::memcpy(&value, static_cast<const char*>(array) + i * sizeof(T), sizeof(T));
    return value;
}

template <class T> inline void store(void* array, std::size_t i, T value) {
    std::memcpy(static_cast<char*>(array) + i * sizeof(T), &value, sizeof(T));
}

constexpr double pow2(int exponent) {
    double result = 1.0;
    for (; exponent > 0; --exponent) result *= 2.0;
    for (; exponent < 0; ++exponent) result *= 0.5;
    return result;
}

constexpr std::uint64_t exponent_mask = std::uint64_t{0x7ff} << 52;
constexpr std::uint64_t sign_bit = std::uint64_t{1} << 63;
constexpr double infinity = std::numeric_limits<double>::infinity();

inline double magnitude(double x) { return bits_as<double>(bits_as<std::uint64_t>(x) & ~sign_bit); }
inline bool is_finite(double x) { return magnitude(x) < infinity; }

// ---- rounding and conversion by magic numbers: the vector units have no instruction for doubles to int64

// Adding it puts the unit of a double of magnitude below 2^51 at 1, so that the addition rounds to an integer (to even).
constexpr double magic = 1.5 * pow2(52);
constexpr std::uint64_t magic_bits = (std::uint64_t{0x3ff + 52} << 52) | (std::uint64_t{1} << 51);

// rint(x) as an integer, |x| <= 2^61. The two halves are exact, and rounding the lower one rounds the whole.
inline std::uint64_t round_to_integer(double x) {
    const double high_bits = x * pow2(-32) + magic;
    const double low_bits = (x - (high_bits - magic) * pow2(32)) + magic;
    const std::uint64_t high = bits_as<std::uint64_t>(high_bits) - magic_bits;
    const std::uint64_t low = bits_as<std::uint64_t>(low_bits) - magic_bits;
    return (high << 32) + low;
}

// rint(x) as an integer for |x| <= quick_limit, in one addition; for other x some integer, always the same one.
constexpr double quick_limit = pow2(50);
inline std::uint64_t quick_integer(double x) { return bits_as<std::uint64_t>(x + magic) - magic_bits; }

// double(q), rounded to nearest even, in operations that vectorise.
inline double to_double(std::int64_t q) {
    const std::uint64_t shifted = static_cast<std::uint64_t>(q) ^ sign_bit;
    const double low = bits_as<double>((shifted & 0xffffffffu) | (std::uint64_t{0x3ff + 52} << 52));
    const double high = bits_as<double>((shifted >> 32) | (std::uint64_t{0x3ff + 84} << 52));
    return (high - (pow2(84) + pow2(63) + pow2(52))) + low;
}

// rint(x) for any x. From 2^52 on a double is an integer already.
inline double round_even(double x) {
    const double unit = bits_as<double>(bits_as<std::uint64_t>(pow2(52)) | (bits_as<std::uint64_t>(x) & sign_bit));
    return magnitude(x) < pow2(52) ? (x + unit) - unit : x;
}

// ---- element types

struct boolean { std::uint8_t byte; };

// A 16-bit float with `fraction` bits after the point and exponents from `lowest` on.
template <int fraction, int lowest> struct Small {
    std::uint16_t bits;
    static constexpr int bias = 1 - lowest;
    static constexpr std::uint16_t infinity_bits = static_cast<std::uint16_t>(0x7fff >> fraction << fraction);

    double value() const {
        const std::uint64_t payload = bits & 0x7fffu;
        // An exponent of all ones in the small type must become one of all ones in the double.
        const std::uint64_t rebias = payload >= infinity_bits ? 0x7ff - (0x7fff >> fraction) : 0x3ff - bias;
        const double normal = bits_as<double>((payload << (52 - fraction)) + (rebias << 52));
        const double subnormal = static_cast<double>(static_cast<std::int32_t>(payload)) * pow2(lowest - fraction);
        const double result = payload >= (1u << fraction) ? normal : subnormal;
        return bits_as<double>(bits_as<std::uint64_t>(result) | (static_cast<std::uint64_t>(bits & 0x8000u) << 48));
    }

    static Small rounded(double x) {
        const std::uint64_t sign = bits_as<std::uint64_t>(x) & sign_bit;
        const double size = magnitude(x);
        const bool representable = size < pow2(1 - lowest + 1);  // no overflow in what follows
        const double bounded = representable ? size : pow2(1 - lowest + 1);
        // The power of two at or below the value, or the smallest normal one: it sets the last place.
        const double base = bits_as<double>(bits_as<std::uint64_t>(bounded) & exponent_mask);
        const double last_place = (base > pow2(lowest) ? base : pow2(lowest)) * pow2(52 - fraction);
        const double exact = (bounded + last_place) - last_place;
        const std::uint64_t normal = (bits_as<std::uint64_t>(exact) >> (52 - fraction)) -
                                     (std::uint64_t{0x3ff - bias} << fraction);
        const std::uint64_t subnormal = bits_as<std::uint64_t>(exact * pow2(fraction - lowest) + pow2(52)) & 0xffffu;
        std::uint64_t result = exact >= pow2(lowest) ? normal : subnormal;
        result = result < infinity_bits ? result : infinity_bits;
        result = size <= infinity ? result : infinity_bits | (1u << (fraction - 1));  // NaN
        return {static_cast<std::uint16_t>(result | (sign >> 48))};
    }
};
using float16 = Small<10, -14>;
using bfloat16 = Small<7, -126>;

template <class T> constexpr bool is_float =
    std::is_same_v<T, float16> || std::is_same_v<T, bfloat16> || std::is_floating_point_v<T>;

inline double value_of(boolean x) { return x.byte != 0 ? 1.0 : 0.0; }
template <int fraction, int lowest> inline double value_of(Small<fraction, lowest> x) { return x.value(); }
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> inline double value_of(T x) {
    return static_cast<double>(x);
}

// values[i] - start[i] as a double. Integers are subtracted as integers, then rounded once.
template <class T> inline double difference(const void* values, const void* start, std::size_t i) {
    const T a = load<T>(values, i), b = load<T>(start, i);
    if constexpr (std::is_integral_v<T> && sizeof(T) == 8) {
        const auto x = static_cast<std::uint64_t>(a), y = static_cast<std::uint64_t>(b);
        return a >= b ? static_cast<double>(x - y) : -static_cast<double>(y - x);
    } else {
        return value_of(a) - value_of(b);
    }
}

// start + delta as an integer, rounded to nearest (to even), saturating.
template <class T> inline T integer_sum(T start, double delta) {
    using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
    constexpr Wide lowest = std::numeric_limits<T>::min(), highest = std::numeric_limits<T>::max();
    const Wide from = start;
    double whole = round_even(delta);
    const double rest = delta - whole;
    const bool tie = rest == 0.5 || rest == -0.5;
    // `whole` is even where there was a tie: the sum is even only if `start` is; else take the other neighbour.
    if (tie && (from & 1) != 0) whole += 2.0 * rest;
    if (whole >= 0) {
        const std::uint64_t room = static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(from);
        if (whole >= pow2(64) || static_cast<std::uint64_t>(whole) > room) return static_cast<T>(highest);
        return static_cast<T>(static_cast<std::uint64_t>(from) + static_cast<std::uint64_t>(whole));
    }
    const std::uint64_t room = static_cast<std::uint64_t>(from) - static_cast<std::uint64_t>(lowest);
    if (-whole >= pow2(64) || static_cast<std::uint64_t>(-whole) > room) return static_cast<T>(lowest);
    return static_cast<T>(static_cast<std::uint64_t>(from) - static_cast<std::uint64_t>(-whole));
}

// start + delta in the element type, rounded once.
template <class T> inline T moved(T start, double delta) {
    if constexpr (std::is_same_v<T, boolean>) {
        return {static_cast<std::uint8_t>(value_of(start) + delta > 0.5 ? 1 : 0)};
    } else if constexpr (std::is_integral_v<T>) {
        return integer_sum(start, delta);
    } else if constexpr (std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>) {
        return T::rounded(value_of(start) + delta);
    } else {
        return static_cast<T>(value_of(start) + delta);
    }
}

// ---- the kernels

constexpr std::size_t block_size = 1024;

inline std::size_t block_end(std::size_t begin, std::size_t n) { return n - begin < block_size ? n : begin + block_size; }

// The largest scaled difference of the elements whose value is finite, and whether all are.
template <class T> Findings inspect(const void* values, const void* start, std::size_t n, double factor) {
    Findings findings{0.0, true};
    for (std::size_t i = 0; i < n; ++i) {
        if (!is_finite(value_of(load<T>(values, i)))) {
            findings.finite = false;
            continue;
        }
        const double size = magnitude(difference<T>(values, start, i) * factor);
        if (!(size <= findings.peak)) findings.peak = is_finite(size) ? size : infinity;
    }
    return findings;
}

template <class T, bool fresh> Findings accumulate_to(std::int64_t* total, const void* values, const void* start,
                                                      std::size_t n, double factor, double limit) {
    double peak = 0.0;
    bool all_fit = true;
    for (std::size_t begin = 0; begin < n; begin += block_size) {
        const std::size_t end = block_end(begin, n);
        // Most updates are small: take that for granted, and look at the largest value of the block afterwards.
        std::int64_t peak_bits = 0;  // magnitudes of doubles are ordered like their bits, and NaN is above infinity
        for (std::size_t i = begin; i < end; ++i) {
            const double x = difference<T>(values, start, i) * factor;
            const std::int64_t size = bits_as<std::int64_t>(magnitude(x));
            peak_bits = size > peak_bits ? size : peak_bits;
            store(total, i, (fresh ? 0 : load<std::uint64_t>(total, i)) + quick_integer(x));
        }
        const double block_peak = bits_as<double>(peak_bits);
        if (!(block_peak <= limit && block_peak <= quick_limit)) {
            for (std::size_t i = begin; i < end; ++i) {
                const double x = difference<T>(values, start, i) * factor;
                const std::uint64_t right = round_to_integer(magnitude(x) <= limit ? x : 0.0);
                store(total, i, load<std::uint64_t>(total, i) + (right - quick_integer(x)));
            }
        }
        all_fit = all_fit && block_peak <= limit;
        peak = block_peak > peak ? block_peak : peak;
    }
    return all_fit ? Findings{peak, true} : inspect<T>(values, start, n, factor);
}

template <class T> Findings accumulate(std::int64_t* total, const void* values, const void* start, std::size_t n,
                                       double factor, double limit, bool fresh) {
    const auto pass = fresh ? accumulate_to<T, true> : accumulate_to<T, false>;
    return pass(total, values, start, n, factor, limit);
}

template <class T> bool accumulate_wide(std::int64_t* const* limbs, std::size_t limb_count, const void* values,
                                        const void* start, std::size_t n, double factor) {
    double top = 1.0;
    for (std::size_t l = 1; l < limb_count; ++l) top *= pow2(limb_bits);
    for (std::size_t i = 0; i < n; ++i) {
        if (!(magnitude(difference<T>(values, start, i) * factor) <= limb_limit * top)) return false;
    }
    for (std::size_t i = 0; i < n; ++i) {
        double rest = difference<T>(values, start, i) * factor;
        double unit = top;
        for (std::size_t l = limb_count; l-- > 0; unit *= pow2(-limb_bits)) {
            const double digit = round_even(rest / unit);
            rest -= digit * unit;
            const auto added = static_cast<std::uint64_t>(static_cast<std::int64_t>(digit));
            store(limbs[l], i, load<std::uint64_t>(limbs[l], i) + added);
        }
    }
    return true;
}

// The integer that the limbs of element i stand for, as a double. Carries are brought up first, so that the result is a
// function of the integer alone, not of how it is spread over the limbs.
inline double wide_sum(const std::int64_t* const* limbs, std::size_t limb_count, std::size_t i) {
    std::int64_t digits[16];
    std::int64_t carry = 0;
    for (std::size_t l = 0; l < limb_count; ++l) {
        const std::int64_t limb = load<std::int64_t>(limbs[l], i) + carry;
        if (l + 1 == limb_count) {
            digits[l] = limb;
            break;
        }
        constexpr std::int64_t half = std::int64_t{1} << (limb_bits - 1);
        const std::int64_t digit = ((limb + half) & (2 * half - 1)) - half;
        digits[l] = digit;
        carry = (limb - digit) / (2 * half);
    }
    double result = 0.0;
    for (std::size_t l = limb_count; l-- > 0;) result = result * pow2(limb_bits) + static_cast<double>(digits[l]);
    return result;
}

template <class T> void finish(void* out, const void* start, const std::int64_t* const* limbs, std::size_t limb_count,
                               std::size_t n, double scale, double divisor) {
    if (limb_count == 1) {
        const std::int64_t* total = limbs[0];
        for (std::size_t i = 0; i < n; ++i) {
            const double delta = to_double(load<std::int64_t>(total, i)) * scale / divisor;
            store(out, i, moved(load<T>(start, i), delta));
        }
    } else {
        for (std::size_t i = 0; i < n; ++i) {
            const double delta = wide_sum(limbs, limb_count, i) * scale / divisor;
            store(out, i, moved(load<T>(start, i), delta));
        }
    }
}

template <class Y, class T> void axpy(Y* y, const void* x, std::size_t n, Y a) {
    for (std::size_t i = 0; i < n; ++i) {
        Y term;
        if constexpr (std::is_arithmetic_v<T>) {
            term = static_cast<Y>(load<T>(x, i));
        } else {
            term = static_cast<Y>(value_of(load<T>(x, i)));
        }
        store(y, i, load<Y>(y, i) + a * term);
    }
}

template <class T> Findings examine(const void* values, std::size_t n) {
    Findings findings{0.0, true};
    for (std::size_t begin = 0; begin < n; begin += block_size) {
        const std::size_t end = block_end(begin, n);
        if constexpr (std::is_floating_point_v<T>) {  // magnitudes are ordered like their bits: no need to widen them
            using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
            Bits peak_bits = 0;
            for (std::size_t i = begin; i < end; ++i) {
                const Bits bits = load<Bits>(values, i) & std::numeric_limits<Bits>::max();
                peak_bits = bits > peak_bits ? bits : peak_bits;
            }
            const double peak = static_cast<double>(bits_as<T>(peak_bits));
            if (peak < infinity) {
                findings.peak = peak > findings.peak ? peak : findings.peak;
                continue;
            }
        }
        std::int64_t peak_bits = bits_as<std::int64_t>(findings.peak);
        std::uint64_t all_finite = 1;
        for (std::size_t i = begin; i < end; ++i) {
            const double size = magnitude(value_of(load<T>(values, i)));
            const bool finite = size < infinity;
            const std::int64_t bits = bits_as<std::int64_t>(finite ? size : 0.0);
            peak_bits = bits > peak_bits ? bits : peak_bits;
            all_finite &= static_cast<std::uint64_t>(finite);
        }
        findings = {bits_as<double>(peak_bits), findings.finite && all_finite != 0};
    }
    return findings;
}

template <class T> double squared_distance(const void* values, const void* start, std::size_t n) {
    constexpr std::size_t lanes = 8;
    double total = 0.0;
    for (std::size_t begin = 0; begin < n; begin += block_size) {
        const std::size_t end = block_end(begin, n);
        double sums[lanes] = {};
        std::size_t i = begin;
        for (; i + lanes <= end; i += lanes) {
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                const double d = difference<T>(values, start, i + lane);
                sums[lane] += d * d;
            }
        }
        for (; i < end; ++i) {
            const double d = difference<T>(values, start, i);
            sums[i % lanes] += d * d;
        }
        total += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    return total;
}

template <class T> constexpr Kernels::Row row() {
    return {accumulate<T>, accumulate_wide<T>, finish<T>, axpy<float, T>, axpy<double, T>, examine<T>,
            squared_distance<T>};
}

constexpr Kernels table = {{
    row<boolean>(), row<std::int8_t>(), row<std::int16_t>(), row<std::int32_t>(), row<std::int64_t>(),
    row<std::uint8_t>(), row<std::uint16_t>(), row<std::uint32_t>(), row<std::uint64_t>(),
    row<float16>(), row<bfloat16>(), row<float>(), row<double>(),
}};

}  // namespace

namespace VARIANT {
const Kernels& kernels() { return table; }
}  // namespace VARIANT

}  // namespace federation
