// algorithms.h - algorithms of products that were chosen by measurement, in a file: what was chosen once is chosen again, so that a run that
// is resumed with the file computes the same bits. One line a choice; lines of other libraries and devices stay and are passed over.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace cft::cuda {

// shape_key is all of a product that decides which algorithms can do it.
using shape_key = std::array<int64_t, 11>;

// algorithm is what the library calls by that name: opaque, of this library's version only.
struct algorithm {
    std::array<uint64_t, 8> words{};
    uint64_t                workspace = 0; // bytes that it takes
};

class algorithms {
  public:
    // Reads the file, if there is one. whose: the library's version and the device's name. Throws CFT_ERR_INVALID_ARGUMENT for a file with other
    // content, and where it cannot be written.
    algorithms(const std::string &path, const std::string &whose);

    const algorithm *find(const shape_key &key) const;
    // Adds a choice to the file, too. One process at a time writes.
    void add(const shape_key &key, const algorithm &a);

    const std::string &path() const { return path_; }

  private:
    std::string                    path_, whose_;
    std::map<shape_key, algorithm> chosen_;
};

} // namespace cft::cuda
