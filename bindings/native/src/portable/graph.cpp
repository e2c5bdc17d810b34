// graph.cpp - see graph.h.
#include "graph.h"

#include "../failure.h"
#include "../library.h"

#include <algorithm>
#include <cstring>

namespace cft::portable {
namespace {

ggml_context *make_context(size_t bytes) {
    ggml_context *const ctx = ggml_init({bytes, nullptr, true});
    if (!ctx) {
        throw failure(CFT_ERR_NO_MEMORY, "out of memory");
    }
    return ctx;
}

bool is_op(const ggml_tensor *t) {
    switch (t->op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE: return false; // nothing is computed
    default: return true;
    }
}

std::string describe(const ggml_tensor *t) {
    std::string text = std::string(ggml_type_name(t->type)) + "[" + std::to_string(t->ne[0]);
    for (int i = 1; i < ggml_n_dims(t); i++) {
        text += "," + std::to_string(t->ne[i]);
    }
    return text + "]";
}

} // namespace

graph::graph(int64_t max_nodes)
    : ctx_(make_context(ggml_tensor_overhead() * size_t(2 * max_nodes) + ggml_graph_overhead_custom(size_t(max_nodes), false))),
      ops_(ggml_new_graph_custom(ctx_, size_t(max_nodes), false)) {}

graph::~graph() { ggml_free(ctx_); }

void graph::add(ggml_tensor *t) { ggml_build_forward_expand(ops_, t); }

ggml_tensor *graph::result(ggml_tensor *t) {
    ggml_set_output(t);
    add(t);
    return t;
}

store::store(int64_t max_tensors) : ctx_(make_context(ggml_tensor_overhead() * size_t(max_tensors))) {}

store::~store() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(ctx_);
}

ggml_tensor *store::tensor(ggml_type type, int64_t ne0, int64_t ne1) { return ggml_new_tensor_2d(ctx_, type, ne0, ne1); }

size_t store::allocate(ggml_backend_dev_t device, bool only_measure, const char *what) {
    const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    if (!ggml_get_first_tensor(ctx_)) {
        return 0;
    }
    const size_t bytes = ggml_backend_alloc_ctx_tensors_from_buft_size(ctx_, type);
    if (only_measure) {
        for (ggml_tensor *t = ggml_get_first_tensor(ctx_); t; t = ggml_get_next_tensor(ctx_, t)) {
            t->data = reinterpret_cast<void *>(uintptr_t(4096)); // as if it lay somewhere: allocators of graphs leave it alone
        }
        return bytes;
    }
    log_capture log;
    buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(ctx_, type);
    if (!buffer_) {
        throw failure(CFT_ERR_NO_MEMORY, std::string(ggml_backend_dev_name(device)) + " did not give " + mebibytes(bytes) + " for " + what + ": " + log.errors());
    }
    clear();
    return bytes;
}

void store::clear() { ggml_backend_buffer_clear(buffer_, 0); }

machine::machine(ggml_backend_dev_t device, int threads, bool only_measure)
    : way(only_measure ? course::measure : course::run), device_(device), allocator_(ggml_gallocr_new(ggml_backend_dev_buffer_type(device))) {
    if (only_measure) {
        return;
    }
    log_capture log;
    backend_ = ggml_backend_dev_init(device, nullptr);
    if (!backend_) {
        ggml_gallocr_free(allocator_);
        throw failure(CFT_ERR_DEVICE, "device " + std::string(name()) + " cannot be opened: " + log.errors());
    }
    void *const set = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (set) {
        reinterpret_cast<ggml_backend_set_n_threads_t>(set)(backend_, threads);
    }
}

machine::~machine() {
    ggml_gallocr_free(allocator_);
    ggml_backend_free(backend_);
}

void machine::check_support(const graph &g) const {
    for (int i = 0; i < ggml_graph_n_nodes(g.ops()); i++) {
        const ggml_tensor *const t = ggml_graph_node(g.ops(), i);
        if (!is_op(t) || ggml_backend_dev_supports_op(device_, t)) {
            continue;
        }
        std::string sources;
        for (int s = 0; s < GGML_MAX_SRC && t->src[s]; s++) {
            sources += (s > 0 ? ", " : "") + describe(t->src[s]);
        }
        throw failure(CFT_ERR_UNSUPPORTED, "device " + std::string(name()) + " cannot run " + ggml_op_desc(t) + " of " + sources + " to " + describe(t) +
                                               ", which training by ggml's ops needs; nothing is moved to the CPU unsaid: train on the device cpu, or a model with weights of another type");
    }
}

// Every op's result and sources lie in memory of the device.
void machine::check_placement(const graph &g) const {
    const ggml_backend_buffer_type_t type   = ggml_backend_dev_buffer_type(device_);
    const auto                       placed = [&](const ggml_tensor *t) {
        const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
        return buffer && ggml_backend_buffer_get_type(buffer) == type;
    };
    for (int i = 0; i < ggml_graph_n_nodes(g.ops()); i++) {
        const ggml_tensor *const t  = ggml_graph_node(g.ops(), i);
        bool                     ok = placed(t);
        for (int s = 0; s < GGML_MAX_SRC && t->src[s]; s++) {
            ok = ok && placed(t->src[s]);
        }
        if (!ok) {
            throw failure(CFT_ERR_INTERNAL, std::string("an operand of ") + ggml_op_desc(t) + " does not lie on " + name());
        }
    }
}

void machine::run(graph &g) {
    check_support(g);
    if (way == course::measure) {
        size_t bytes = 0;
        ggml_gallocr_reserve_n_size(allocator_, g.ops(), nullptr, nullptr, &bytes);
        work_bytes_ = std::max(work_bytes_, bytes);
        return;
    }
    log_capture log;
    const bool  got = way == course::reserve ? ggml_gallocr_reserve(allocator_, g.ops()) : ggml_gallocr_alloc_graph(allocator_, g.ops());
    if (!got) {
        throw failure(CFT_ERR_NO_MEMORY, std::string(name()) + " did not give the memory for a layer's work (train.seq_len makes it less): " + log.errors());
    }
    work_bytes_ = std::max(work_bytes_, ggml_gallocr_get_buffer_size(allocator_, 0));
    if (way == course::reserve) {
        return;
    }
    check_placement(g);
    ggml_status status = GGML_STATUS_FAILED;
    std::string why;
    try {
        status = ggml_backend_graph_compute(backend_, g.ops());
    } catch (const std::exception &e) { // Vulkan's C++ interface throws: a device that is lost, memory that is not there
        why = std::string(": ") + e.what();
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw failure(status == GGML_STATUS_ALLOC_FAILED ? CFT_ERR_NO_MEMORY : CFT_ERR_DEVICE,
                      std::string(name()) + " failed: " + ggml_status_to_string(status) + why + " " + log.errors());
    }
    for (int i = 0; i < ggml_graph_n_nodes(g.ops()); i++) {
        n_ops_ += is_op(ggml_graph_node(g.ops(), i));
    }
}

std::string mebibytes(size_t bytes) { return std::to_string((bytes + (size_t(1) << 20) - 1) >> 20) + " MiB"; }

} // namespace cft::portable
