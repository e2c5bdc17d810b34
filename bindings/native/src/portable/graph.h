// graph.h - graphs of ggml ops, and the one device that they run on.
//
// Matrices are ggml's: ne[0] is the contiguous dimension, so a row-major [rows][columns] of the rest of the engine is [columns, rows]
// here. Comments give ggml's order.
#pragma once

#include "cft.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cft::portable {

// graph is one graph in the making.
class graph {
  public:
    explicit graph(int64_t max_nodes);
    ~graph();
    graph(const graph &)            = delete;
    graph &operator=(const graph &) = delete;

    ggml_context *ctx() const { return ctx_; }
    ggml_cgraph  *ops() const { return ops_; }
    void          add(ggml_tensor *t); // and all that it needs
    // The same for a result that is read after the graph has run.
    ggml_tensor  *result(ggml_tensor *t);

  private:
    ggml_context *ctx_;
    ggml_cgraph  *ops_;
};

// store is tensors that outlive graphs, in buffers of their own.
class store {
  public:
    explicit store(int64_t max_tensors);
    ~store();
    store(const store &)            = delete;
    store &operator=(const store &) = delete;

    ggml_tensor *tensor(ggml_type type, int64_t ne0, int64_t ne1 = 1);
    // Returns the bytes that the tensors take. With only_measure they get none, and may be used in graphs that do not run.
    size_t       allocate(ggml_backend_dev_t device, bool only_measure, const char *what);
    void         clear(); // all bytes 0

  private:
    ggml_context         *ctx_;
    ggml_backend_buffer_t buffer_ = nullptr;
};

enum class course {
    measure, // nothing runs: ops are asked for, memory is counted
    reserve, // nothing runs: memory is taken
    run,
};

// machine runs graphs on one device, every op of them, or says which one the device lacks. There is no scheduler and so no second
// device that an op could go to.
class machine {
  public:
    machine(ggml_backend_dev_t device, int threads, bool only_measure);
    ~machine();
    machine(const machine &)            = delete;
    machine &operator=(const machine &) = delete;

    void run(graph &g);

    course             way; // what run does
    ggml_backend_dev_t device() const { return device_; }
    const char        *name() const { return ggml_backend_dev_name(device_); }
    size_t             work_bytes() const { return work_bytes_; } // of the largest graph so far
    uint64_t           n_ops() const { return n_ops_; }           // that have run, every one on the device

  private:
    void check_support(const graph &g) const;
    void check_placement(const graph &g) const;

    ggml_backend_dev_t device_;
    ggml_backend_t     backend_ = nullptr;
    ggml_gallocr_t     allocator_;
    size_t             work_bytes_ = 0;
    uint64_t           n_ops_      = 0;
};

// What a device is told where memory is short.
std::string mebibytes(size_t bytes);

} // namespace cft::portable
