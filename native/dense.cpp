#include "dense.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace federation {
namespace {

void check_index(const char* what, std::int64_t index, std::size_t count) {
    if (index < 0 || static_cast<std::size_t>(index) >= count) {
        throw std::out_of_range("there is no " + std::string(what) + " " + std::to_string(index) + " among " + std::to_string(count));
    }
}

void check_batch(const DenseNetwork::Samples& samples, const std::int64_t* batch, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        check_index("sample", batch[i], samples.count);
        check_index("row", samples.rows[batch[i]], samples.num_rows);
    }
}

}  // namespace

DenseNetwork::DenseNetwork(Sgemm sgemm, std::vector<Layer> layers)
    : sgemm_(sgemm), layers_(std::move(layers)), values_(layers_.size() + 1), slopes_(layers_.size()) {}

double DenseNetwork::step(const Samples& samples, const std::int64_t* labels, const std::int64_t* batch, std::size_t count,
                          float rate) {
    const std::size_t classes = layers_.back().outputs;
    check_batch(samples, batch, count);
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t label = labels[batch[i]];
        if (label < 0 || static_cast<std::size_t>(label) >= classes) {
            throw std::out_of_range("the label " + std::to_string(label) + " is none of " + std::to_string(classes) + " classes");
        }
    }
    forward(samples, batch, count);
    double loss = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        const float* scores = values_.back().get() + i * classes;
        float* slope = slopes_.back().get() + i * classes;
        const auto label = static_cast<std::size_t>(labels[batch[i]]);
        const float peak = *std::max_element(scores, scores + classes);
        float sum = 0.0f;
        for (std::size_t c = 0; c < classes; ++c) sum += slope[c] = std::exp(scores[c] - peak);
        loss += std::log(sum) - (scores[label] - peak);  // in this order: a score near the peak loses nothing
        for (std::size_t c = 0; c < classes; ++c) slope[c] /= sum * static_cast<float>(count);
        slope[label] -= 1.0f / static_cast<float>(count);
    }
    backward(count, rate);
    return loss / static_cast<double>(count);
}

double DenseNetwork::step(const Samples& samples, const float* targets, const std::int64_t* batch, std::size_t count,
                          float rate) {
    check_batch(samples, batch, count);
    forward(samples, batch, count);
    double loss = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        const float error = values_.back()[i] - targets[batch[i]];
        loss += static_cast<double>(error) * error;
        slopes_.back()[i] = error * (2.0f / static_cast<float>(count));
    }
    backward(count, rate);
    return loss / static_cast<double>(count);
}

void DenseNetwork::forward(const Samples& samples, const std::int64_t* batch, std::size_t count) {
    reserve(count);
    const std::size_t width = layers_.front().inputs;
    for (std::size_t i = 0; i < count; ++i) {
        const auto row = static_cast<std::size_t>(samples.rows[batch[i]]);
        std::memcpy(values_.front().get() + i * width, samples.x + row * width, width * sizeof(float));
    }
    for (std::size_t index = 0; index < layers_.size(); ++index) {
        const Layer& layer = layers_[index];
        float* given = values_[index].get();
        float* out = values_[index + 1].get();
        if (index > 0) {
            // Written so that NaN stays NaN.
            for (std::size_t i = 0; i < count * layer.inputs; ++i) given[i] = given[i] < 0.0f ? 0.0f : given[i];
        }
        for (std::size_t i = 0; i < count; ++i) std::copy_n(layer.bias, layer.outputs, out + i * layer.outputs);
        product("T", "N", layer.outputs, count, layer.inputs, 1.0f, layer.weight, layer.inputs, given, layer.inputs, 1.0f, out);
    }
}

void DenseNetwork::backward(std::size_t count, float rate) {
    for (std::size_t index = layers_.size(); index-- > 0;) {
        const Layer& layer = layers_[index];
        const float* given = values_[index].get();
        const float* slope = slopes_[index].get();
        if (index > 0) {
            float* below = slopes_[index - 1].get();
            product("N", "N", layer.inputs, count, layer.outputs, 1.0f, layer.weight, layer.inputs, slope, layer.outputs, 0.0f,
                    below);
            for (std::size_t i = 0; i < count * layer.inputs; ++i) below[i] = given[i] <= 0.0f ? 0.0f : below[i];
        }
        product("N", "T", layer.inputs, layer.outputs, count, -rate, given, layer.inputs, slope, layer.outputs, 1.0f,
                layer.weight);
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t c = 0; c < layer.outputs; ++c) layer.bias[c] -= rate * slope[i * layer.outputs + c];
        }
    }
}

// The result has as many rows as m, so that its leading dimension is m.
void DenseNetwork::product(const char* transa, const char* transb, std::size_t m, std::size_t n, std::size_t k, float alpha,
                           const float* a, std::size_t lda, const float* b, std::size_t ldb, float beta, float* c) const {
    const std::int64_t sizes[] = {static_cast<std::int64_t>(m), static_cast<std::int64_t>(n), static_cast<std::int64_t>(k),
                                  static_cast<std::int64_t>(lda), static_cast<std::int64_t>(ldb)};
    sgemm_(transa, transb, &sizes[0], &sizes[1], &sizes[2], &alpha, a, &sizes[3], b, &sizes[4], &beta, c, &sizes[0]);
}

void DenseNetwork::reserve(std::size_t count) {
    if (count <= reserved_) return;
    values_.front() = aligned(count * layers_.front().inputs);
    for (std::size_t index = 0; index < layers_.size(); ++index) {
        values_[index + 1] = aligned(count * layers_[index].outputs);
        slopes_[index] = aligned(count * layers_[index].outputs);
    }
    reserved_ = count;
}

DenseNetwork::Buffer DenseNetwork::aligned(std::size_t size) {
    return Buffer(static_cast<float*>(::operator new[](size * sizeof(float), alignment)));
}

}  // namespace federation
