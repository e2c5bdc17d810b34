// heads.h - the norm and the rotation of a head's row by the lanes of a warp, and their way back. Included by .cu files only.
#pragma once

#include "device.h"

namespace cft::cuda {

// A head belongs to neighbouring lanes of a warp, 8, 16 or 32; each has eight of its elements, the last ones perhaps none.
struct head_place {
    int64_t row;
    int     column; // of the head
    int     first, step, n; // heads
    bool    inside;
    __device__ __forceinline__ bool has(int k) const { return inside && first + k * step < n; }
    __device__ __forceinline__ int  head(int k) const { return first + k * step; }
};

template <int lanes_of_head> __device__ __forceinline__ float head_sum(float x) {
#pragma unroll
    for (int o = lanes_of_head / 2; o > 0; o /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, o);
    }
    return x;
}

// rotation is the row's part of the table that a lane turns its elements by; direction -1 turns back. Every lane of the warp must come to its turns.
class rotation {
  public:
    __device__ __forceinline__ rotation(const head_place &p, const head_map &m, float direction) : rotates_(m.n_rot > 0), halves_(m.halves) {
        if (!rotates_) {
            return;
        }
        const int          half  = m.n_rot / 2;
        const float *const table = m.table + (p.inside ? int64_t(m.rows ? m.rows[p.row] : p.row) * m.n_rot : 0);
        turns_ = p.inside && p.column < m.n_rot;
        if (halves_) {
            const bool first = p.column < half;
            const int  lane = int(threadIdx.x) % lanes, j = turns_ ? first ? p.column : p.column - half : 0;
            partner_ = turns_ ? lane + (first ? half : -half) / 8 : lane;
            cos_ = load8(table + j), sin_ = load8(table + half + j);
            sign_ = first ? -direction : direction;
            return;
        }
        for (int k = 0; k < 4; k++) { // pairs of neighbours
            const int j = p.column / 2 + k;
            cos_.x[k] = turns_ && j < half ? table[j] : 1.0f;
            sin_.x[k] = turns_ && j < half ? direction * table[half + j] : 0.0f;
        }
    }
    __device__ __forceinline__ void turn(eight &e) const {
        if (!rotates_) {
            return;
        }
        if (!halves_) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float a = e.x[2 * k], b = e.x[2 * k + 1];
                e.x[2 * k]     = a * cos_.x[k] - b * sin_.x[k];
                e.x[2 * k + 1] = a * sin_.x[k] + b * cos_.x[k];
            }
            return;
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float other = __shfl_sync(0xffffffffu, e.x[k], partner_);
            if (turns_) {
                e.x[k] = e.x[k] * cos_.x[k] + sign_ * other * sin_.x[k];
            }
        }
    }

  private:
    bool  rotates_, halves_, turns_ = false;
    int   partner_ = 0;
    float sign_    = 0;
    eight cos_, sin_;
};

// A head's row as attention takes it: the norm, whose rstd is written if the head is there, and the rotation.
template <int lanes_of_head>
__device__ __forceinline__ void turn_row(const head_place &p, int head, bool there, const head_map &m, const rotation &by, const eight &w, eight &e) {
    if (m.w) {
        float squares = 0;
#pragma unroll
        for (float v : e.x) {
            squares += v * v;
        }
        const float r = 1.0f / sqrtf(head_sum<lanes_of_head>(squares) / float(m.head_dim) + m.eps);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            e.x[i] = e.x[i] * r * w.x[i];
        }
        if (m.rstd && p.column == 0 && there) {
            m.rstd[p.row * m.n_head + head] = r;
        }
    }
    by.turn(e);
}

// The gradient at a head's row x for the gradient d at what turn_heads has made of it. x is not read without a norm.
template <int lanes_of_head> __device__ __forceinline__ eight turned_back(const head_place &p, const head_map &m, eight d, const eight &x) {
    rotation(p, m, -1.0f).turn(d);
    if (!m.w) {
        return d;
    }
    float product = 0;
    if (p.inside) {
        const eight w = load8(m.w + p.column);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            d.x[k] *= w.x[k];
            product += d.x[k] * x.x[k];
        }
    }
    const float sum = head_sum<lanes_of_head>(product), r = p.inside ? m.rstd[p.row * m.n_head + p.first] : 0.0f;
    const float c = -sum * r * r * r / float(m.head_dim);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        d.x[k] = r * d.x[k] + c * x.x[k];
    }
    return d;
}

} // namespace cft::cuda
