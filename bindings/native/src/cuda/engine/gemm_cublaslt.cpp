// gemm_cublaslt.cpp - gemm.h by cuBLASLt. The library is column-major: our row-major c = a b is its cᵀ = bᵀ aᵀ.
//
// An algorithm is asked for once per shape, from the library's own ranking, never by timing, so that a run's bits do not depend on
// what else the device did. Sums may be split over k only where the parts lie in the workspace and are added in order.
#include "gemm.h"

#include "../../failure.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

namespace cft::cuda {
namespace {

void check(cublasStatus_t s, const char *what) {
    if (s != CUBLAS_STATUS_SUCCESS) {
        throw failure(CFT_ERR_DEVICE, std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(s));
    }
}

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
    cublasLtMatmulAlgo_t  algorithm;
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

    void choose(cublasLtHandle_t handle, const product &p) {
        cublasLtMatmulPreference_t preference;
        check(cublasLtMatmulPreferenceCreate(&preference), "preference");
        const size_t   bytes   = products_workspace_bytes;
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
        cublasLtMatmulHeuristicResult_t found{};
        int                             n_found = 0;
        const cublasStatus_t            status  = cublasLtMatmulAlgoGetHeuristic(handle, operation, first.handle, second.handle, result.handle,
                                                                     result.handle, preference, 1, &found, &n_found);
        cublasLtMatmulPreferenceDestroy(preference);
        if (status != CUBLAS_STATUS_SUCCESS || n_found == 0) {
            throw failure(CFT_ERR_DEVICE, "cuBLASLt has no algorithm for a product of " + std::to_string(p.m) + " x " + std::to_string(p.k) +
                                              " by " + std::to_string(p.k) + " x " + std::to_string(p.n));
        }
        algorithm = found.algo;
        workspace = found.workspaceSize;
    }
};

using shape_key = std::array<int64_t, 12>;

class lt_products : public products {
  public:
    explicit lt_products(void *workspace) : workspace_(workspace) { check(cublasLtCreate(&handle_), "start"); }
    ~lt_products() override {
        shapes_.clear();
        cublasLtDestroy(handle_);
    }

    void run(const product &p, cudaStream_t stream) override {
        if (p.m == 0 || p.n == 0) {
            return;
        }
        const shape_key key = {p.m, p.n, p.k, p.ld_a, p.ld_b, p.ld_c, p.transposed_a * 4 + p.transposed_b * 2 + p.c_is_f32, p.beta != 0,
                               alignment_of(p.a, p.ld_a, 2), alignment_of(p.b, p.ld_b, 2), alignment_of(p.c, p.ld_c, p.c_is_f32 ? 4 : 2), 0};
        auto at = shapes_.find(key);
        if (at == shapes_.end()) {
            if (shapes_.size() >= max_shapes) {
                shapes_.clear(); // the same choices come out again
            }
            auto made = std::make_unique<prepared>(p);
            made->choose(handle_, p);
            at = shapes_.emplace(key, std::move(made)).first;
        }
        const prepared &s = *at->second;
        check(cublasLtMatmul(handle_, s.operation, &p.alpha, p.b, s.first.handle, p.a, s.second.handle, &p.beta, p.c, s.result.handle, p.c,
                             s.result.handle, &s.algorithm, workspace_, s.workspace, stream),
              "product");
    }

  private:
    static constexpr size_t max_shapes = 20000; // packs of many lengths make many

    cublasLtHandle_t                               handle_ = nullptr;
    void                                          *workspace_;
    std::map<shape_key, std::unique_ptr<prepared>> shapes_;
};

} // namespace

std::unique_ptr<products> make_products(void *workspace) { return std::make_unique<lt_products>(workspace); }

} // namespace cft::cuda
