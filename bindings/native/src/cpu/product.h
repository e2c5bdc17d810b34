// product.h - matrix products on the calling thread, by kernels of our own: the rows of A are read where they lie and only B
// is packed, which here is mostly weights that have to be dequantized somewhere anyway. On the shapes of training that is
// some 15 % faster than a BLAS, which packs both.
//
// C [m][n] = scale * A [m][k] B [k][n], or += . All matrices are row-major with a stride; A may be a transposed view.
#pragma once

#include "isa.h"

#include <cstddef>
#include <cstdint>

namespace cft::cpu {

// A's element (i, k) is p[i * row + k * column]; one of the strides is 1.
struct factor {
    const float *p;
    int64_t      row, column;
};
inline factor rows_of(const float *p, int64_t stride) { return {p, stride, 1}; }
inline factor columns_of(const float *p, int64_t stride) { return {p, 1, stride}; } // A is the transpose of what lies at p

struct result {
    float  *p;
    int64_t row;
    float   scale = 1;
    bool    add   = false; // to what is there
};

// What the kernels take: B in panels of `panel` columns. The rows of a panel are b_row apart, the panels b_panel; every
// panel can be read to the next multiple of a vector.
struct product {
    factor       a;
    const float *b;
    int64_t      b_row, b_panel;
    result       c;
    int64_t      m, n, k;
};

struct product_kernels {
    int panel, vector; // floats
    void (*multiply)(const product &p);
    // Writes n <= panel rows of k floats as the columns of a panel [k][panel]; columns up to whole vectors become 0.
    void (*transpose)(const float *from, int64_t from_row, int64_t n, int64_t k, float *panel);
};

// The kernels of one instruction set; NULL if this CPU cannot run them.
const product_kernels *product_kernels_of(isa i);

// products packs B for the kernels in scratch memory of its own thread.
class products {
  public:
    static constexpr size_t scratch_floats = size_t(1) << 17; // 512 KiB: stays in a core's second-level cache

    products(const product_kernels &kernels, float *scratch) : kernels_(kernels), scratch_(scratch) {}

    // b: [k][n].
    void multiply(factor a, const float *b, int64_t b_row, const result &c, int64_t m, int64_t n, int64_t k) const;
    // b: [n][k], to be transposed.
    void multiply_transposed(factor a, const float *b, int64_t b_row, const result &c, int64_t m, int64_t n, int64_t k) const;

    const product_kernels &kernels() const { return kernels_; }
    float                 *scratch() const { return scratch_; }

  private:
    const product_kernels &kernels_;
    float                 *scratch_;
};

// up_to rounds n up to a multiple.
inline int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

} // namespace cft::cpu
