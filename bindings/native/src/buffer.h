// buffer.h - aligned, uninitialized memory for floats; pages that are never written take none.
#pragma once

#include <cstddef>

namespace cft {

class buffer {
  public:
    explicit buffer(size_t n_floats); // throws std::bad_alloc
    ~buffer();
    buffer(const buffer &)            = delete;
    buffer &operator=(const buffer &) = delete;
    float  *data() const { return data_; }
    size_t  size() const { return size_; }

  private:
    float *data_ = nullptr;
    size_t size_ = 0;
};

} // namespace cft
