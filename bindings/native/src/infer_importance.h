// infer_importance.h - how much each column of a weight counts: the sum of squares of what it is multiplied by, over all that a
// context decodes. llama.cpp's tool of the name imatrix collects the same.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cft {

class importance {
  public:
    struct entry {
        int64_t             n_columns = 0;
        std::vector<double> sums;   // [n_matrices][n_columns]
        std::vector<double> counts; // [n_matrices]: rows of input that were seen
    };

    // observe is a ggml_backend_sched_eval_callback; user is an importance.
    static bool observe(ggml_tensor *t, bool ask, void *user);

    const std::map<std::string, entry> &entries() const { return entries_; }
    // error is empty unless something could not be collected.
    const std::string &error() const { return error_; }

  private:
    void add(const ggml_tensor *t);
    void add_rows(entry &e, const ggml_tensor *input);
    void add_expert_rows(entry &e, const ggml_tensor *input, const ggml_tensor *ids);

    std::map<std::string, entry> entries_; // by the weight's name
    std::vector<char>            input_, ids_; // copies of what lies on a device
    std::string                  error_;
};

} // namespace cft
