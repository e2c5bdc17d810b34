// page_locks.h - weights that stay in the host's memory, locked there, so that copies of them need not wait for the host and go at the bus's
// full rate. The pages are those of the mapped file: nothing is copied for it.
#pragma once

#include "../kernels.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace cft::cuda {

// page_locks holds pages locked while it lives. It is all or nothing: what cannot be locked whole stays as it was, and refusal() says why. Several
// trainers of one model lock its pages once.
class page_locks {
  public:
    using range = std::pair<const char *, const char *>; // from, to

    // The pages of these ranges, if those that nobody has locked are at most so many bytes.
    page_locks(const std::vector<range> &ranges, uint64_t lockable);
    ~page_locks();
    page_locks(const page_locks &)            = delete;
    page_locks &operator=(const page_locks &) = delete;

    bool               held() const { return refusal_.empty(); }
    const std::string &refusal() const { return refusal_; }

  private:
    void give_back();

    std::vector<range> held_;
    std::string        refusal_;
};

// Copies from where a file is mapped. CUDA takes no range of which a part is locked: a tensor's last page may be that of the next one, which a trainer of
// the same model has locked. So it is copied in parts that are locked or not.
void to_device_from_file(void *to, const void *from, size_t bytes, cudaStream_t stream);

} // namespace cft::cuda
