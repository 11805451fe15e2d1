// Thin bindings: exact types, no conversions. Arguments are checked by the callers, federation/kernels.py and
// federation/builtin/steps/dense.py.
#include "columnwise.hpp"
#include "dense.hpp"
#include "kernels.hpp"
#include "stream.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cfenv>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;
using namespace federation;

namespace {

template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Limbs = std::vector<Vector<std::int64_t>>;

struct Variant {
    const char* name;
    const Kernels& (*kernels)();
    const Columnwise& (*columnwise)();
};

// The best first.
std::vector<Variant> supported_variants() {
    std::vector<Variant> variants;
#ifdef HAS_VARIANT_avx512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        variants.push_back({"avx512", avx512::kernels, avx512::columnwise});
    }
#endif
#ifdef HAS_VARIANT_avx2
    if (__builtin_cpu_supports("avx2")) variants.push_back({"avx2", avx2::kernels, avx2::columnwise});
#endif
    variants.push_back({"portable", portable::kernels, portable::columnwise});
    return variants;
}

Variant& selected() {
    static Variant variant = supported_variants().front();
    return variant;
}

const Kernels::Row& kernels_of(Dtype dtype) { return selected().kernels().rows[static_cast<int>(dtype)]; }

// The default floating-point environment for as long as this lives: rounding to nearest, denormals kept.
class DefaultArithmetic {
public:
    DefaultArithmetic() {
        std::fegetenv(&previous_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&previous_); }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

private:
    std::fenv_t previous_;
};

// Runs `kernel` without the GIL and in the default floating-point environment.
template <class Kernel> auto run(Kernel&& kernel) {
    nb::gil_scoped_release unlocked;
    DefaultArithmetic arithmetic;
    return kernel();
}

std::vector<std::int64_t*> pointers(const Limbs& limbs) {
    std::vector<std::int64_t*> result;
    for (const auto& limb : limbs) result.push_back(limb.data());
    return result;
}

// `Bits` is the type that carries the elements: 16-bit floats come as uint16, booleans as uint8.
template <class Bits> void bind(nb::module_& m, Dtype dtype, const std::string& name) {
    using In = Vector<const Bits>;
    const auto define = [&](const char* verb, auto function, auto... arguments) {
        m.def((std::string(verb) + "_" + name).c_str(), function, arguments...);
    };
    define("accumulate",
           [dtype](const Vector<std::int64_t>& total, const In& values, const In& start, double factor, double limit) {
               const Findings found = run([&] {
                   return kernels_of(dtype).accumulate(total.data(), values.data(), start.data(), values.size(), factor,
                                                       limit, false);
               });
               return std::make_pair(found.peak, found.finite);
           },
           nb::arg("total").noconvert(), nb::arg("values").noconvert(), nb::arg("start").noconvert(), "factor"_a,
           "limit"_a);
    define("accumulate_wide",
           [dtype](const Limbs& limbs, const In& values, const In& start, double factor) {
               const auto to = pointers(limbs);
               return run([&] {
                   return kernels_of(dtype).accumulate_wide(to.data(), to.size(), values.data(), start.data(),
                                                            values.size(), factor);
               });
           },
           nb::arg("limbs").noconvert(), nb::arg("values").noconvert(), nb::arg("start").noconvert(), "factor"_a);
    define("finish",
           [dtype](const Vector<Bits>& out, const In& start, const Limbs& limbs, double scale, double divisor) {
               const auto from = pointers(limbs);
               run([&] {
                   kernels_of(dtype).finish(out.data(), start.data(), from.data(), from.size(), out.size(), scale,
                                            divisor);
               });
           },
           nb::arg("out").noconvert(), nb::arg("start").noconvert(), nb::arg("limbs").noconvert(), "scale"_a,
           "divisor"_a);
    define("axpy_float32",
           [dtype](const Vector<float>& y, const In& x, float a) {
               run([&] { kernels_of(dtype).axpy_float32(y.data(), x.data(), x.size(), a); });
           },
           nb::arg("y").noconvert(), nb::arg("x").noconvert(), "a"_a);
    define("axpy_float64",
           [dtype](const Vector<double>& y, const In& x, double a) {
               run([&] { kernels_of(dtype).axpy_float64(y.data(), x.data(), x.size(), a); });
           },
           nb::arg("y").noconvert(), nb::arg("x").noconvert(), "a"_a);
    define("examine",
           [dtype](const In& values) {
               const Findings found = run([&] { return kernels_of(dtype).examine(values.data(), values.size()); });
               return std::make_pair(found.peak, found.finite);
           },
           nb::arg("values").noconvert());
    define("squared_distance",
           [dtype](const In& values, const In& start) {
               return run([&] { return kernels_of(dtype).squared_distance(values.data(), start.data(), values.size()); });
           },
           nb::arg("values").noconvert(), nb::arg("start").noconvert());
}

// One array of a model: its element type, where it begins in the model's bytes and in a vector of totals, and its length.
struct Place {
    std::int64_t dtype, offset, slot, size;
};

// Accumulates every array of a model with a factor of its own, or none: false where something would be left out. A fresh
// total counts as zero; where false is returned it holds anything, and is still fresh.
bool accumulate_model(std::int64_t* total, const std::uint8_t* values, const std::uint8_t* start, const Place* places,
                      std::size_t count, const double* factors, double limit, bool fresh) {
    const auto accumulate = [&](std::size_t i, double factor) {
        const Place& place = places[i];
        return kernels_of(static_cast<Dtype>(place.dtype))
            .accumulate(total + place.slot, values + place.offset, start + place.offset,
                        static_cast<std::size_t>(place.size), factor, limit, fresh);
    };
    for (std::size_t i = 0; i < count; ++i) {
        const Findings found = accumulate(i, factors[i]);
        if (found.finite && found.peak <= limit) continue;
        for (std::size_t done = 0; done <= i && !fresh; ++done) accumulate(done, -factors[done]);
        return false;
    }
    return true;
}

template <class T> const Columnwise::Functions<T>& columnwise_of() {
    const Columnwise& table = selected().columnwise();
    if constexpr (std::is_same_v<T, float>) {
        return table.float32;
    } else {
        return table.float64;
    }
}

template <class T> void bind_columnwise(nb::module_& m, const std::string& name) {
    using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
    m.def(("median_" + name).c_str(),
          [](const Rows& rows, const Vector<T>& out) {
              run([&] { columnwise_of<T>().median(rows.data(), rows.shape(0), rows.shape(1), out.data()); });
          },
          nb::arg("rows").noconvert(), nb::arg("out").noconvert());
    m.def(("trimmed_mean_" + name).c_str(),
          [](const Rows& rows, const Vector<T>& out, std::size_t trim) {
              run([&] { columnwise_of<T>().trimmed_mean(rows.data(), rows.shape(0), rows.shape(1), trim, out.data()); });
          },
          nb::arg("rows").noconvert(), nb::arg("out").noconvert(), "trim"_a);
    m.def(("mean_around_median_" + name).c_str(),
          [](const Rows& rows, const Vector<T>& out, std::size_t kept) {
              run([&] {
                  columnwise_of<T>().mean_around_median(rows.data(), rows.shape(0), rows.shape(1), kept, out.data());
              });
          },
          nb::arg("rows").noconvert(), nb::arg("out").noconvert(), "kept"_a);
}

// A DenseNetwork and the arrays that it works on.
class Network {
public:
    using Weight = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
    using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

    Network(std::uintptr_t sgemm, std::vector<Weight> weights, std::vector<Vector<float>> biases)
        : weights_(std::move(weights)), biases_(std::move(biases)),
          network_(reinterpret_cast<Sgemm>(sgemm), layers(weights_, biases_)) {}  // NOLINT: an address from ctypes

    // `rows` and `y` are as long.
    template <class Wanted>
    double step(const Rows& x, const Vector<const std::int64_t>& rows, const Vector<const Wanted>& y,
                const Vector<const std::int64_t>& batch, float rate) {
        return run([&] {
            return network_.step({x.data(), x.shape(0), rows.data(), rows.size()}, y.data(), batch.data(), batch.size(), rate);
        });
    }

private:
    static std::vector<DenseNetwork::Layer> layers(const std::vector<Weight>& weights, const std::vector<Vector<float>>& biases) {
        std::vector<DenseNetwork::Layer> result;
        for (std::size_t i = 0; i < weights.size(); ++i) {
            result.push_back({weights[i].shape(1), weights[i].shape(0), weights[i].data(), biases[i].data()});
        }
        return result;
    }

    std::vector<Weight> weights_;
    std::vector<Vector<float>> biases_;
    DenseNetwork network_;
};

}  // namespace

NB_MODULE(_native, m) {
    nb::class_<Network>(m, "DenseNetwork")
        .def(nb::init<std::uintptr_t, std::vector<Network::Weight>, std::vector<Vector<float>>>(), "sgemm"_a,
             nb::arg("weights").noconvert(), nb::arg("biases").noconvert())
        .def("classify", &Network::step<std::int64_t>, nb::arg("x").noconvert(), nb::arg("rows").noconvert(),
             nb::arg("y").noconvert(), nb::arg("batch").noconvert(), "rate"_a)
        .def("regress", &Network::step<float>, nb::arg("x").noconvert(), nb::arg("rows").noconvert(),
             nb::arg("y").noconvert(), nb::arg("batch").noconvert(), "rate"_a);
    bind<std::uint8_t>(m, Dtype::boolean, "bool");
    bind<std::int8_t>(m, Dtype::int8, "int8");
    bind<std::int16_t>(m, Dtype::int16, "int16");
    bind<std::int32_t>(m, Dtype::int32, "int32");
    bind<std::int64_t>(m, Dtype::int64, "int64");
    bind<std::uint8_t>(m, Dtype::uint8, "uint8");
    bind<std::uint16_t>(m, Dtype::uint16, "uint16");
    bind<std::uint32_t>(m, Dtype::uint32, "uint32");
    bind<std::uint64_t>(m, Dtype::uint64, "uint64");
    bind<std::uint16_t>(m, Dtype::float16, "float16");
    bind<std::uint16_t>(m, Dtype::bfloat16, "bfloat16");
    bind<float>(m, Dtype::float32, "float32");
    bind<double>(m, Dtype::float64, "float64");
    nb::list dtypes;
    for (const char* name : {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
                             "bfloat16", "float32", "float64"}) {
        dtypes.append(name);
    }
    m.attr("DTYPES") = dtypes;
    bind_columnwise<float>(m, "float32");
    bind_columnwise<double>(m, "float64");

    m.def("accumulate_model",
          [](const Vector<std::int64_t>& total, const Vector<const std::uint8_t>& values,
             const Vector<const std::uint8_t>& start, const Vector<const std::int64_t>& places,
             const Vector<const double>& factors, double limit, bool fresh) {
              return run([&] {
                  return accumulate_model(total.data(), values.data(), start.data(),
                                          reinterpret_cast<const Place*>(places.data()), factors.size(), factors.data(),
                                          limit, fresh);
              });
          },
          nb::arg("total").noconvert(), nb::arg("values").noconvert(), nb::arg("start").noconvert(),
          nb::arg("places").noconvert(), nb::arg("factors").noconvert(), "limit"_a, "fresh"_a);

    m.def("copy",
          [](const Vector<std::uint8_t>& out, const Vector<const std::uint8_t>& values) {
              nb::gil_scoped_release unlocked;
              if (values.size() < streams_from) {
                  std::memcpy(out.data(), values.data(), values.size());
              } else {
                  stream(out.data(), values.data(), values.size());
              }
          },
          nb::arg("out").noconvert(), nb::arg("values").noconvert());

    m.def("variants", [] {
        std::vector<std::string> names;
        for (const Variant& variant : supported_variants()) names.emplace_back(variant.name);
        return names;
    });
    m.def("variant", [] { return std::string(selected().name); });
    m.def("select_variant", [](const std::string& name) {
        for (const Variant& variant : supported_variants()) {
            if (name == variant.name) {
                selected() = variant;
                return;
            }
        }
        throw std::invalid_argument("no variant " + name);
    }, "name"_a);
}
