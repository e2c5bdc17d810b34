// gemm_cublaslt.cpp - gemm.h by cuBLASLt. The library is column-major: our row-major c = a b is its cᵀ = bᵀ aᵀ.
//
// An algorithm is asked for once per shape, from the library's own ranking, not by timing, so that a run's bits do not depend on
// what else the device did. With CFT_CUDA_TUNE=FILE those of the ranking are timed, and the choice is kept in that file (algorithms.h).
// Sums may be split over k only where the parts lie in the workspace and are added in order.
#include "gemm.h"
#include "runtime.h"

#include "../../failure.h"
#include "../algorithms.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace cft::cuda {
namespace {

void check(cublasStatus_t s, const char *what) {
    if (s != CUBLAS_STATUS_SUCCESS) {
        throw failure(CFT_ERR_DEVICE, std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(s));
    }
}

constexpr int candidates = 8; // of the ranking, where more than its first are looked at

// The largest power of two up to 256 that divides the pointer and the distance of its rows.
uint32_t alignment_of(const void *p, int64_t ld, size_t element) {
    const uint64_t bits = uint64_t(reinterpret_cast<uintptr_t>(p)) | uint64_t(ld) * element | 256;
    return uint32_t(bits & (~bits + 1));
}

struct layout_handle {
    cublasLtMatrixLayout_t handle = nullptr;
    layout_handle(cudaDataType type, int64_t rows, int64_t columns, int64_t ld) {
        check(cublasLtMatrixLayoutCreate(&handle, type, uint64_t(rows), uint64_t(columns), ld), "matrix layout");
    }
    ~layout_handle() { cublasLtMatrixLayoutDestroy(handle); }
    layout_handle(const layout_handle &)            = delete;
    layout_handle &operator=(const layout_handle &) = delete;
};

// prepared is what one shape needs, made once.
struct prepared {
    cublasLtMatmulDesc_t  operation = nullptr;
    layout_handle         first, second, result;
    cublasLtMatmulAlgo_t  algo;
    size_t                workspace = 0;

    explicit prepared(const product &p)
        : first(CUDA_R_16BF, p.transposed_b ? p.k : p.n, p.transposed_b ? p.n : p.k, p.ld_b),
          second(CUDA_R_16BF, p.transposed_a ? p.m : p.k, p.transposed_a ? p.k : p.m, p.ld_a),
          result(p.c_is_f32 ? CUDA_R_32F : CUDA_R_16BF, p.n, p.m, p.ld_c) {
        check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation");
        const cublasOperation_t t = CUBLAS_OP_T, n = CUBLAS_OP_N;
        check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transposed_b ? &t : &n, sizeof t), "transpose");
        check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transposed_a ? &t : &n, sizeof t), "transpose");
    }
    ~prepared() { cublasLtMatmulDescDestroy(operation); }
    prepared(const prepared &)            = delete;
    prepared &operator=(const prepared &) = delete;

    // The library's ranking, the best first: at most so many.
    std::vector<cublasLtMatmulHeuristicResult_t> ranking(cublasLtHandle_t handle, const product &p, size_t bytes, int most) {
        cublasLtMatmulPreference_t preference;
        check(cublasLtMatmulPreferenceCreate(&preference), "preference");
        const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        const uint32_t first_bytes = alignment_of(p.b, p.ld_b, 2), second_bytes = alignment_of(p.a, p.ld_a, 2);
        const uint32_t result_bytes = alignment_of(p.c, p.ld_c, p.c_is_f32 ? 4 : 2);
        const auto     set = [&](cublasLtMatmulPreferenceAttributes_t which, const void *value, size_t size) {
            check(cublasLtMatmulPreferenceSetAttribute(preference, which, value, size), "preference");
        };
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
        set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &first_bytes, sizeof first_bytes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &second_bytes, sizeof second_bytes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &result_bytes, sizeof result_bytes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &result_bytes, sizeof result_bytes);
        std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(most));
        int                                          n_found = 0;
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, operation, first.handle, second.handle, result.handle, result.handle,
                                                                     preference, most, found.data(), &n_found);
        cublasLtMatmulPreferenceDestroy(preference);
        const failure none(CFT_ERR_DEVICE, "cuBLASLt has no algorithm for a product of " + std::to_string(p.m) + " x " + std::to_string(p.k) + " by " +
                                               std::to_string(p.k) + " x " + std::to_string(p.n) + " (" + cublasLtGetStatusString(status) + ")");
        if (status != CUBLAS_STATUS_SUCCESS) {
            throw none;
        }
        found.resize(size_t(n_found));
        found.erase(std::remove_if(found.begin(), found.end(), [](const auto &f) { return f.state != CUBLAS_STATUS_SUCCESS; }), found.end());
        if (found.empty() && most < candidates) {
            return ranking(handle, p, bytes, candidates);
        }
        if (found.empty()) {
            throw none;
        }
        return found;
    }

    void choose(const cublasLtMatmulHeuristicResult_t &found) {
        algo      = found.algo;
        workspace = found.workspaceSize;
    }
};

void check_runtime(cudaError_t e, const char *what) {
    if (e != cudaSuccess) {
        throw failure(CFT_ERR_DEVICE, std::string("CUDA: ") + what + ": " + cudaGetErrorString(e));
    }
}

// Whose algorithms these are: the library's version and the device's name.
std::string whose_algorithms() {
    int            device = 0;
    cudaDeviceProp p{};
    check_runtime(cudaGetDevice(&device), "the device at work");
    check_runtime(cudaGetDeviceProperties(&p, device), "properties of a device");
    return "cuBLASLt " + std::to_string(cublasLtGetVersion()) + ", " + p.name + ", " + std::to_string(p.multiProcessorCount) + " multiprocessors";
}

class lt_products : public products {
  public:
    lt_products(void *workspace, size_t bytes) : workspace_(workspace), workspace_bytes_(bytes) {
        check(cublasLtCreate(&handle_), "start");
        if (const char *path = std::getenv("CFT_CUDA_TUNE")) {
            measured_ = std::make_unique<algorithms>(path, whose_algorithms());
        }
    }
    ~lt_products() override {
        if (n_measured_ > 0) {
            std::fprintf(stderr, "products: %d shapes measured: %.3f ms by the library's ranking, %.3f ms by the fastest\n", n_measured_, by_ranking_, by_time_);
        }
        shapes_.clear();
        cublasLtDestroy(handle_);
    }

    void run(const product &p, cudaStream_t stream) override {
        if (p.m == 0 || p.n == 0) {
            return;
        }
        const shape_key key = {p.m, p.n, p.k, p.ld_a, p.ld_b, p.ld_c, p.transposed_a * 4 + p.transposed_b * 2 + p.c_is_f32, p.beta != 0,
                               alignment_of(p.a, p.ld_a, 2), alignment_of(p.b, p.ld_b, 2), alignment_of(p.c, p.ld_c, p.c_is_f32 ? 4 : 2)};
        auto at = shapes_.find(key);
        if (at == shapes_.end()) {
            if (shapes_.size() >= max_shapes) {
                shapes_.clear(); // the same choices come out again
            }
            auto made = std::make_unique<prepared>(p);
            choose(*made, key, p, stream);
            at = shapes_.emplace(key, std::move(made)).first;
        }
        check(multiply(*at->second, p, stream), "product");
    }

  private:
    static constexpr size_t max_shapes = 20000; // packs of many lengths make many
    static constexpr int    max_measured = 512, looked_at = 32, finalists = 4, repetitions = 2, final_repetitions = 10;
    static constexpr double least_flops = 1e9;   // of a product that is worth measuring
    static constexpr double clearly     = 0.99; // what does not take less than so much of what the ranking's first takes is left to the ranking

    cublasStatus_t multiply(const prepared &s, const product &p, cudaStream_t stream) {
        return cublasLtMatmul(handle_, s.operation, &p.alpha, p.b, s.first.handle, p.a, s.second.handle, &p.beta, p.c, s.result.handle, p.c,
                              s.result.handle, &s.algo, workspace_, s.workspace, stream);
    }

    void choose(prepared &s, const shape_key &key, const product &p, cudaStream_t stream) {
        const algorithm *const known = measured_ ? measured_->find(key) : nullptr;
        if (known) {
            static_assert(sizeof s.algo == sizeof known->words, "an algorithm is eight words");
            std::memcpy(&s.algo, known->words.data(), sizeof s.algo);
            s.workspace = known->workspace;
            cublasLtMatmulHeuristicResult_t result{};
            if (s.workspace > workspace_bytes_ || cublasLtMatmulAlgoCheck(handle_, s.operation, s.first.handle, s.second.handle, s.result.handle,
                                                                                  s.result.handle, &s.algo, &result) != CUBLAS_STATUS_SUCCESS) {
                throw failure(CFT_ERR_INVALID_ARGUMENT, "algorithms of products (CFT_CUDA_TUNE): " + measured_->path() +
                                                            ": cuBLASLt refuses one of them; remove the file, and all are measured again");
            }
        } else if (measured_ && n_measured_ < max_measured && 2.0 * double(p.m) * double(p.n) * double(p.k) >= least_flops) {
            measure(s, key, p, stream);
        } else {
            s.choose(s.ranking(handle_, p, workspace_bytes_, 1)[0]);
        }
    }

    // Takes the fastest of what the ranking has, and writes it down. c is as before afterwards.
    void measure(prepared &s, const shape_key &key, const product &p, cudaStream_t stream) {
        check_runtime(cudaDeviceSynchronize(), "waiting for the device"); // another stream's work would be measured along
        const size_t bytes = size_t((p.m - 1) * p.ld_c + p.n) * (p.c_is_f32 ? sizeof(float) : sizeof(bf16));
        const memory saved(p.beta != 0 ? bytes : 0);
        const auto   move = [&](void *to, const void *from) {
            if (saved.size() > 0) {
                check_runtime(cudaMemcpyAsync(to, from, saved.size(), cudaMemcpyDeviceToDevice, stream), "copy");
            }
        };
        move(saved.data(), p.c);
        // All are timed shortly, then the ranking's first and the fastest of the others in turns, so that what the device's clock does meets all alike.
        const auto                            found = s.ranking(handle_, p, workspace_bytes_, looked_at);
        std::vector<std::pair<float, size_t>> others;
        for (size_t i = 1; i < found.size(); i++) {
            if (const float ms = time_of(s, found[i], p, stream, repetitions); ms > 0) {
                others.emplace_back(ms, i);
            }
        }
        std::sort(others.begin(), others.end());
        others.resize(std::min(others.size(), size_t(finalists)));
        others.insert(others.begin(), {0.0f, size_t(0)});
        std::vector<double> sums(others.size());
        for (int turn = 0; turn < final_repetitions; turn++) {
            for (size_t i = 0; i < others.size(); i++) {
                sums[i] += double(time_of(s, found[others[i].second], p, stream, 1));
            }
        }
        size_t best = 0;
        for (size_t i = 1; i < sums.size(); i++) {
            if ((sums[best] <= 0 || sums[i] < sums[best]) && (sums[0] <= 0 || sums[i] < clearly * sums[0])) { // 0: the first cannot
                best = i;
            }
        }
        move(p.c, saved.data());
        check_runtime(cudaStreamSynchronize(stream), "waiting for the device"); // before `saved` goes
        s.choose(found[others[best].second]);
        algorithm a;
        std::memcpy(a.words.data(), &s.algo, sizeof s.algo);
        a.workspace = s.workspace;
        measured_->add(key, a);
        const double ms = sums[best] / final_repetitions, flops = 2.0 * double(p.m) * double(p.n) * double(p.k);
        std::fprintf(stderr, "products: %lld x %lld by %lld x %lld%s%s%s: %.3f ms (%.0f TFLOP/s) by the library's ranking, %.3f ms (%.0f) by its number %zu of %zu\n",
                     static_cast<long long>(p.m), static_cast<long long>(p.k), static_cast<long long>(p.k), static_cast<long long>(p.n), p.transposed_a ? ", the first transposed" : "",
                     p.transposed_b ? ", the second transposed" : "", p.c_is_f32 ? ", F32" : "", sums[0] / final_repetitions, flops * final_repetitions / sums[0] * 1e-9, ms,
                     flops / ms * 1e-9, others[best].second + 1, found.size());
        n_measured_++, by_ranking_ += sums[0] / final_repetitions, by_time_ += ms;
    }

    // The shortest of some repetitions in ms; 0 where the library cannot. Once before them it is not timed.
    float time_of(prepared &s, const cublasLtMatmulHeuristicResult_t &how, const product &p, cudaStream_t stream, int repetitions) {
        cudaEvent_t begin, end;
        check_runtime(cudaEventCreate(&begin), "making an event");
        check_runtime(cudaEventCreate(&end), "making an event");
        s.choose(how);
        float least = 0;
        bool  works = multiply(s, p, stream) == CUBLAS_STATUS_SUCCESS;
        for (int i = 0; works && i < repetitions; i++) {
            float ms = 0;
            check_runtime(cudaEventRecord(begin, stream), "recording an event");
            works = multiply(s, p, stream) == CUBLAS_STATUS_SUCCESS;
            check_runtime(cudaEventRecord(end, stream), "recording an event");
            check_runtime(cudaEventSynchronize(end), "measuring a product");
            check_runtime(cudaEventElapsedTime(&ms, begin, end), "measuring a product");
            least = i == 0 ? ms : std::min(least, ms);
        }
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
        return works ? least : 0;
    }

    cublasLtHandle_t                               handle_ = nullptr;
    void                                          *workspace_;
    size_t                                         workspace_bytes_;
    std::map<shape_key, std::unique_ptr<prepared>> shapes_;
    std::unique_ptr<algorithms>                    measured_; // with CFT_CUDA_TUNE
    int                                            n_measured_ = 0;
    double                                         by_ranking_ = 0, by_time_ = 0; // ms
};

} // namespace

std::unique_ptr<products> make_products(void *workspace, size_t bytes) { return std::make_unique<lt_products>(workspace, bytes); }

} // namespace cft::cuda
