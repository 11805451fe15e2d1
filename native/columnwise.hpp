// What robust rules make of each column of a K x n matrix in C order: the median, the mean without the extremes, the
// mean of the values around the median.
//
// Values are ordered by integer keys: as real numbers, with -0.0 before 0.0 and every NaN, all alike, after +infinity.
// So a result is a function of the column's values, whatever their order. Sums are float64, in sorted order. The caller
// has checked sizes. Every variant gives the same bits.
#pragma once

#include <cstddef>

namespace federation {

struct Columnwise {
    template <class T> struct Functions {
        // The middle value, or the mean of the two in the middle, rounded once.
        void (*median)(const T* rows, std::size_t count, std::size_t n, T* out);
        // The mean without the `trim` smallest and largest; 2 * trim < count.
        void (*trimmed_mean)(const T* rows, std::size_t count, std::size_t n, std::size_t trim, T* out);
        // The mean of the `kept` values closest to the median, ties to the smaller; 1 <= kept <= count.
        void (*mean_around_median)(const T* rows, std::size_t count, std::size_t n, std::size_t kept, T* out);
    };
    Functions<float> float32;
    Functions<double> float64;
};

namespace portable { const Columnwise& columnwise(); }
namespace avx2 { const Columnwise& columnwise(); }
namespace avx512 { const Columnwise& columnwise(); }

}  // namespace federation
