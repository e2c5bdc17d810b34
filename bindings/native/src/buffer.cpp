#include "buffer.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cft {

buffer::buffer(size_t n_floats) : size_(n_floats) {
    if (n_floats == 0) {
        return;
    }
    constexpr size_t alignment = 64, huge_page = size_t(2) << 20;
    const size_t     bytes     = (n_floats * sizeof(float) + alignment - 1) / alignment * alignment;
    void            *p         = std::aligned_alloc(alignment, bytes);
    if (!p) {
        throw std::bad_alloc();
    }
#if defined(__linux__)
    if (bytes >= huge_page) {
        madvise(p, bytes, MADV_HUGEPAGE); // advice only: failure costs speed, nothing else
    }
#endif
    data_ = static_cast<float *>(p);
}

buffer::~buffer() { std::free(data_); }

} // namespace cft
