// Steps of plain SGD on a network of linear layers with ReLU between them, whose parameters are moved where they lie.
//
// Matrix products are left to a BLAS, of which the caller brings the Fortran routine SGEMM; everything else is here. The
// update goes into the product: no gradient of a weight matrix is ever made, which saves a pass over memory of the model's
// size. Which bits come out follows from that BLAS, the arrays and their alignment; all memory of this class is aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace federation {

// C = alpha * op(A) * op(B) + beta * C, column by column. On a little-endian machine its integers may have 32 or 64 bits.
using Sgemm = void (*)(const char* transa, const char* transb, const std::int64_t* m, const std::int64_t* n,
                       const std::int64_t* k, const float* alpha, const float* a, const std::int64_t* lda, const float* b,
                       const std::int64_t* ldb, const float* beta, float* c, const std::int64_t* ldc);

class DenseNetwork {
public:
    // `weight` is outputs x inputs in C order; both arrays are the caller's, and stay where they are.
    struct Layer {
        std::size_t inputs, outputs;
        float* weight;
        float* bias;
    };

    // At least one layer, each of at least one input and output, each as wide as the one before it gives.
    DenseNetwork(Sgemm sgemm, std::vector<Layer> layers);
    DenseNetwork(const DenseNetwork&) = delete;
    DenseNetwork& operator=(const DenseNetwork&) = delete;

    // `count` samples, of which sample i is row `rows[i]` of `x`; that has `num_rows` rows of inputs, in C order.
    struct Samples {
        const float* x;
        std::size_t num_rows;
        const std::int64_t* rows;
        std::size_t count;
    };

    // One step down the mean loss of the `count` samples (at least one) with the indices `batch`. Returns the loss before it.
    // std::out_of_range, with nothing moved, for an index that is none.
    //
    // Cross entropy of classes: `labels` of all samples, each 0 to outputs - 1.
    double step(const Samples& samples, const std::int64_t* labels, const std::int64_t* batch, std::size_t count, float rate);
    // The mean square of errors: `targets` of all samples; the network has one output.
    double step(const Samples& samples, const float* targets, const std::int64_t* batch, std::size_t count, float rate);

private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(float* memory) const { ::operator delete[](memory, alignment); }
    };
    using Buffer = std::unique_ptr<float[], Free>;
    static Buffer aligned(std::size_t size);

    void reserve(std::size_t count);
    void forward(const Samples& samples, const std::int64_t* batch, std::size_t count);
    void backward(std::size_t count, float rate);
    void product(const char* transa, const char* transb, std::size_t m, std::size_t n, std::size_t k, float alpha,
                 const float* a, std::size_t lda, const float* b, std::size_t ldb, float beta, float* c) const;

    Sgemm sgemm_;
    std::vector<Layer> layers_;
    std::size_t reserved_ = 0;    // samples
    std::vector<Buffer> values_;  // what each layer is given, then the network's outputs
    std::vector<Buffer> slopes_;  // of the loss by what each layer gives
};

}  // namespace federation
