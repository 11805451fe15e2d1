// Compiled once for each variant, with VARIANT naming it. Everything but the table has internal linkage, so that the
// linker never mixes code that was compiled for different instruction sets.
#include "columnwise.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace federation {
namespace {

// ---- keys: integers in the order of the values

template <class T> using Key = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T> inline Key<T> flipped(Key<T> bits) {
    // Negative numbers have their magnitude upside down; doing it twice restores them.
    return bits ^ ((bits >> (8 * sizeof(T) - 1)) & std::numeric_limits<Key<T>>::max());
}

template <class T> constexpr Key<T> not_a_number() {
    return sizeof(T) == 4 ? Key<T>(0x7fc00000) : Key<T>(0x7ff8000000000000);
}

template <class T> inline Key<T> key_of(T value) {
    Key<T> bits;
    std::memcpy(&bits, &value, sizeof(T));
    return value != value ? not_a_number<T>() : flipped<T>(bits);
}

template <class T> inline T value_of(Key<T> key) {
    const Key<T> bits = flipped<T>(key);
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// ---- sorting networks

// Puts the smaller of two rows of keys first. Where only one of the two is needed later, the other is left as it is.
struct Comparator {
    std::uint32_t low, high;
    bool wants_low, wants_high;
};

// Batcher's odd-even merge sort for `count` rows, without what does not show in the rows first .. last.
std::vector<Comparator> network(std::size_t count, std::size_t first, std::size_t last) {
    std::vector<Comparator> all;
    std::size_t size = 1;
    while (size < count) size *= 2;
    for (std::size_t p = 1; p < size; p *= 2) {
        for (std::size_t k = p; k >= 1; k /= 2) {
            for (std::size_t j = k % p; j + k < size; j += 2 * k) {
                for (std::size_t i = 0; i < k && i + j + k < size; ++i) {
                    const std::size_t low = i + j, high = i + j + k;
                    // Rows beyond `count` would hold the largest key of all and never move.
                    if (low / (2 * p) == high / (2 * p) && high < count)
                        all.push_back({static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high), true, true});
                }
            }
        }
    }
    std::vector<bool> needed(count, false);
    std::fill(needed.begin() + static_cast<std::ptrdiff_t>(first), needed.begin() + static_cast<std::ptrdiff_t>(last) + 1,
              true);
    std::vector<Comparator> kept;
    for (auto comparator = all.rbegin(); comparator != all.rend(); ++comparator) {
        comparator->wants_low = needed[comparator->low];
        comparator->wants_high = needed[comparator->high];
        if (!comparator->wants_low && !comparator->wants_high) continue;
        needed[comparator->low] = needed[comparator->high] = true;
        kept.push_back(*comparator);
    }
    std::reverse(kept.begin(), kept.end());
    return kept;
}

// Columns of a tile: a few vectors, so that the tile of up to `network_rows` rows stays in the first-level cache.
template <class T> constexpr std::size_t tile_width = 128 / sizeof(T);
// Above so many rows, each column is sorted by itself.
constexpr std::size_t network_rows = 160;

template <class T> inline void apply(const Comparator& comparator, Key<T>* tile) {
    constexpr std::size_t width = tile_width<T>;
    Key<T>* __restrict low = tile + comparator.low * width;
    Key<T>* __restrict high = tile + comparator.high * width;
    if (comparator.wants_low && comparator.wants_high) {
        for (std::size_t c = 0; c < width; ++c) {
            const Key<T> a = low[c], b = high[c];
            low[c] = a < b ? a : b;
            high[c] = a < b ? b : a;
        }
    } else if (comparator.wants_low) {
        for (std::size_t c = 0; c < width; ++c) low[c] = low[c] < high[c] ? low[c] : high[c];
    } else {
        for (std::size_t c = 0; c < width; ++c) high[c] = low[c] < high[c] ? high[c] : low[c];
    }
}

// Calls finish(column, keys, stride) for every column, with the keys first .. last in their sorted places: key r of the
// column is keys[r * stride].
template <class T, class Finish>
void each_sorted(const T* rows, std::size_t count, std::size_t n, std::size_t first, std::size_t last, Finish finish) {
    constexpr std::size_t width = tile_width<T>;
    if (count <= network_rows) {
        const std::vector<Comparator> comparators = network(count, first, last);
        std::vector<Key<T>> memory(count * width + 64 / sizeof(Key<T>));
        auto address = reinterpret_cast<std::uintptr_t>(memory.data());
        Key<T>* tile = memory.data() + ((64 - address % 64) % 64) / sizeof(Key<T>);
        for (std::size_t begin = 0; begin < n; begin += width) {
            const std::size_t columns = std::min(width, n - begin);
            for (std::size_t r = 0; r < count; ++r) {
                const T* row = rows + r * n + begin;
                Key<T>* keys = tile + r * width;
                if (columns == width) {
                    for (std::size_t c = 0; c < width; ++c) keys[c] = key_of(row[c]);
                } else {
                    for (std::size_t c = 0; c < columns; ++c) keys[c] = key_of(row[c]);
                    for (std::size_t c = columns; c < width; ++c) keys[c] = 0;
                }
            }
            for (const Comparator& comparator : comparators) apply<T>(comparator, tile);
            for (std::size_t c = 0; c < columns; ++c) finish(begin + c, tile + c, width);
        }
        return;
    }
    // A few columns at a time, so that what is read of a row is a whole cache line.
    constexpr std::size_t together = 64 / sizeof(T);
    std::vector<Key<T>> tile(count * together);
    for (std::size_t begin = 0; begin < n; begin += together) {
        const std::size_t columns = std::min(together, n - begin);
        for (std::size_t r = 0; r < count; ++r)
            for (std::size_t c = 0; c < columns; ++c) tile[c * count + r] = key_of(rows[r * n + begin + c]);
        for (std::size_t c = 0; c < columns; ++c) {
            Key<T>* keys = tile.data() + c * count;
            if (first > 0) std::nth_element(keys, keys + first, keys + count);
            if (last + 1 < count) std::nth_element(keys + first, keys + last, keys + count);
            std::sort(keys + first, keys + last + 1);
            finish(begin + c, keys, std::size_t{1});
        }
    }
}

// ---- what is made of a sorted column

// The mean of two values, without overflow where both are finite.
inline double middle(double a, double b) {
    const double sum = a + b;
    return std::isinf(sum) && std::isfinite(a) && std::isfinite(b) ? 0.5 * a + 0.5 * b : 0.5 * sum;
}

template <class T> inline double median_of(const Key<T>* keys, std::size_t stride, std::size_t count) {
    const double upper = value_of<T>(keys[count / 2 * stride]);
    return count % 2 ? upper : middle(value_of<T>(keys[(count / 2 - 1) * stride]), upper);
}

template <class T>
inline T mean_of(const Key<T>* keys, std::size_t stride, std::size_t first, std::size_t last) {
    if (first == last) return value_of<T>(keys[first * stride]);
    double sum = value_of<T>(keys[first * stride]);
    for (std::size_t r = first + 1; r <= last; ++r) sum += static_cast<double>(value_of<T>(keys[r * stride]));
    return static_cast<T>(sum / static_cast<double>(last - first + 1));
}

template <class T> inline T as_result(T value) {
    return value != value ? value_of<T>(not_a_number<T>()) : value;
}

template <class T> void median(const T* rows, std::size_t count, std::size_t n, T* out) {
    each_sorted(rows, count, n, (count - 1) / 2, count / 2, [&](std::size_t column, const Key<T>* keys, std::size_t stride) {
        out[column] = as_result(count % 2 ? value_of<T>(keys[count / 2 * stride])
                                          : static_cast<T>(median_of<T>(keys, stride, count)));
    });
}

template <class T> void trimmed_mean(const T* rows, std::size_t count, std::size_t n, std::size_t trim, T* out) {
    const std::size_t last = count - trim - 1;
    each_sorted(rows, count, n, trim, last, [&](std::size_t column, const Key<T>* keys, std::size_t stride) {
        out[column] = as_result(mean_of<T>(keys, stride, trim, last));
    });
}

template <class T> void mean_around_median(const T* rows, std::size_t count, std::size_t n, std::size_t kept, T* out) {
    each_sorted(rows, count, n, 0, count - 1, [&](std::size_t column, const Key<T>* keys, std::size_t stride) {
        const double centre = median_of<T>(keys, stride, count);
        if (centre != centre) {
            out[column] = value_of<T>(not_a_number<T>());
            return;
        }
        const auto value = [keys, stride](std::size_t r) { return static_cast<double>(value_of<T>(keys[r * stride])); };
        const auto distance = [&](std::size_t r) {
            const double x = value(r);
            return x == centre ? 0.0 : x != x ? std::numeric_limits<double>::infinity() : std::fabs(x - centre);
        };
        // From the median outwards, each time to the side that is closer.
        std::size_t first = count / 2;
        while (first > 0 && value(first - 1) >= centre) --first;
        std::size_t end = first;
        while (end - first < kept) {
            if (first > 0 && (end == count || distance(first - 1) <= distance(end))) {
                --first;
            } else {
                ++end;
            }
        }
        out[column] = as_result(mean_of<T>(keys, stride, first, first + kept - 1));
    });
}

template <class T> constexpr Columnwise::Functions<T> functions() {
    return {median<T>, trimmed_mean<T>, mean_around_median<T>};
}

constexpr Columnwise table = {functions<float>(), functions<double>()};

}  // namespace

namespace VARIANT {
const Columnwise& columnwise() { return table; }
}  // namespace VARIANT

}  // namespace federation
