// test_cuda_dequantize.cpp - weights of every GGUF type: the CUDA kernels' values against ggml's, bit for bit.
#include "cuda_fixture.h"

#include <cstdint>

using namespace checks;
namespace cuda = cft::cuda;

namespace {

constexpr int64_t n_rows = 5, padding = 8; // rows of the results are that much longer

// Random bytes are every code, in every place; scales among them are sometimes infinite or NaN.
std::vector<uint8_t> random_weights(ggml_type type, int64_t columns) {
    std::vector<uint8_t> bytes(size_t(n_rows) * ggml_row_size(type, columns));
    std::generate(bytes.begin(), bytes.end(), [] { return uint8_t(random_int(0, 255)); });
    return bytes;
}

std::vector<float> by_ggml(ggml_type type, const uint8_t *row, int64_t columns) {
    std::vector<float> v(static_cast<size_t>(columns));
    if (type == GGML_TYPE_F32) {
        std::memcpy(v.data(), row, v.size() * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(row, v.data(), columns);
    }
    return v;
}

// Elements that differ; NaN is equal to NaN.
template <typename T> int64_t differences(const std::vector<float> &want, const T *got) {
    int64_t n = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const T w = to<T>(want[i]);
        n += std::isnan(want[i]) ? !std::isnan(to_float(got[i])) : std::memcmp(&w, &got[i], sizeof w) != 0;
    }
    return n;
}

template <typename T> void test_type(ggml_type type, int64_t columns) {
    const size_t               row_bytes = ggml_row_size(type, columns);
    const std::vector<uint8_t> bytes     = random_weights(type, columns);
    const int64_t              ld        = columns + padding;
    on_device<uint8_t>         from(bytes);
    on_device<T>               to_all(size_t(n_rows * ld));
    cuda::dequantize(type, from.data(), row_bytes, n_rows, columns, to_all.data(), ld, nullptr);
    const std::vector<T> all = to_all.host();
    for (int64_t r = 0; r < n_rows; r++) {
        const std::vector<float> want = by_ggml(type, bytes.data() + size_t(r) * row_bytes, columns);
        CHECK(differences(want, all.data() + r * ld) == 0);
        CHECK(std::isnan(to_float(all[size_t(r * ld + columns)]))); // beyond the row's end nothing is written
    }

    // Some rows, scaled, to a place that allows no wide stores.
    const std::vector<int32_t> rows  = {3, 0, 3, 4};
    const float                scale = 1.7f;
    on_device<int32_t>         index(rows);
    on_device<T>               to_some(rows.size() * size_t(columns + 1) + 1);
    cuda::embed(type, from.data(), row_bytes, index.data(), int64_t(rows.size()), columns, scale, to_some.data() + 1, columns + 1, nullptr);
    const std::vector<T> some = to_some.host();
    for (size_t i = 0; i < rows.size(); i++) {
        std::vector<float> want = by_ggml(type, bytes.data() + size_t(rows[i]) * row_bytes, columns);
        for (float &x : want) {
            x *= scale;
        }
        CHECK(differences(want, some.data() + 1 + int64_t(i) * (columns + 1)) == 0);
    }
}

void test_types() {
    int n_types = 0;
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const ggml_type type = ggml_type(i);
        const bool      of_weights = type == GGML_TYPE_F32 || (ggml_get_type_traits(type)->to_float && type != GGML_TYPE_Q8_K);
        CHECK(cuda::can_dequantize(type) == of_weights);
        if (!of_weights) {
            continue;
        }
        n_types++;
        in_both_orders(ggml_type_name(type), [&] {
            test_type<float>(type, 768);
            test_type<bf16>(type, 768);
            if (768 % ggml_blck_size(type) == 0 && ggml_blck_size(type) <= 32) {
                test_type<bf16>(type, 576); // rows that are no multiple of a K-quant's block
            }
        });
    }
    CHECK(n_types == 25);
}

void test_refusals() {
    where = "refusals";
    on_device<float> x(64);
    int              thrown = 0;
    for (const auto &[type, columns] : {std::pair<ggml_type, int64_t>{GGML_TYPE_I32, 64}, {GGML_TYPE_F32, 12}}) {
        try {
            cuda::dequantize(type, x.data(), 4, 1, columns, x.data(), columns, nullptr);
        } catch (const std::exception &) {
            thrown++;
        }
    }
    CHECK(thrown == 2);
}

} // namespace

int main() {
    test_types();
    test_refusals();
    return finish("test_cuda_dequantize");
}
