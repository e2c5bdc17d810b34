// infer_importance.cpp - see infer_importance.h.
#include "infer_importance.h"

#include "cft_infer.h"
#include "failure.h"
#include "infer_session.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>

namespace cft {
namespace {

// wanted tells a product of a layer's weight from others: of attention, of adapters. As in llama.cpp's tool, the output head is not
// collected.
bool wanted(const ggml_tensor *t) {
    if (t->op != GGML_OP_MUL_MAT && t->op != GGML_OP_MUL_MAT_ID) {
        return false;
    }
    const std::string name   = t->src[0]->name;
    const std::string suffix = ".weight";
    return name.compare(0, 4, "blk.") == 0 && name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0 &&
           t->src[1]->type == GGML_TYPE_F32;
}

// bytes_of returns a tensor's bytes, copied to scratch where they are not in host memory.
const char *bytes_of(const ggml_tensor *t, std::vector<char> &scratch) {
    if (ggml_backend_buffer_is_host(t->buffer)) {
        return static_cast<const char *>(t->data);
    }
    scratch.resize(ggml_nbytes(t));
    ggml_backend_tensor_get(t, scratch.data(), 0, scratch.size());
    return scratch.data();
}

void add_squares(double *sums, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        sums[i] += double(x[i]) * double(x[i]);
    }
}

} // namespace

bool importance::observe(ggml_tensor *t, bool ask, void *user) {
    if (!wanted(t)) {
        return !ask; // false to a question: not interested; afterwards: go on
    }
    if (ask) {
        return true;
    }
    auto *self = static_cast<importance *>(user);
    try { // nothing may be thrown through ggml
        self->add(t);
    } catch (const std::exception &e) {
        self->error_ = e.what();
    }
    return true;
}

void importance::add(const ggml_tensor *t) {
    const ggml_tensor *weight = t->src[0], *input = t->src[1];
    entry             &e      = entries_[weight->name];
    const auto         n      = size_t(weight->ne[2] * weight->ne[3]);
    if (e.n_columns == 0) {
        e.n_columns = weight->ne[0];
        e.sums.assign(n * size_t(e.n_columns), 0);
        e.counts.assign(n, 0);
    }
    if (t->op == GGML_OP_MUL_MAT_ID) {
        add_expert_rows(e, input, t->src[2]);
    } else {
        add_rows(e, input);
    }
}

void importance::add_rows(entry &e, const ggml_tensor *input) {
    const char *data = bytes_of(input, input_);
    for (int64_t k = 0; k < input->ne[2] * input->ne[3]; k++) {
        for (int64_t row = 0; row < input->ne[1]; row++) {
            const size_t at = size_t(row) * input->nb[1] + size_t(k % input->ne[2]) * input->nb[2] + size_t(k / input->ne[2]) * input->nb[3];
            add_squares(e.sums.data(), reinterpret_cast<const float *>(data + at), e.n_columns);
            e.counts[0]++;
        }
    }
}

// input: [columns, used or 1, tokens], ids: [used, tokens], which expert each is multiplied by.
void importance::add_expert_rows(entry &e, const ggml_tensor *input, const ggml_tensor *ids) {
    const char *data = bytes_of(input, input_), *which = bytes_of(ids, ids_);
    for (int64_t token = 0; token < ids->ne[1]; token++) {
        for (int64_t k = 0; k < ids->ne[0]; k++) {
            int32_t expert = 0;
            std::memcpy(&expert, which + size_t(token) * ids->nb[1] + size_t(k) * ids->nb[0], sizeof expert);
            if (expert < 0 || size_t(expert) >= e.counts.size()) {
                throw failure(CFT_ERR_INTERNAL, "expert " + std::to_string(expert) + " of " + std::to_string(e.counts.size()));
            }
            const size_t at = size_t(k % input->ne[1]) * input->nb[1] + size_t(token) * input->nb[2];
            add_squares(e.sums.data() + size_t(expert) * size_t(e.n_columns), reinterpret_cast<const float *>(data + at), e.n_columns);
            e.counts[size_t(expert)]++;
        }
    }
}

} // namespace cft

using namespace cft;

size_t cft_session_importance_count(const cft_session *session) {
    return session && session->importance ? session->importance->entries().size() : 0;
}

cft_status cft_session_importance_get(const cft_session *session, size_t i, cft_importance *out, float *sums, size_t n_sums, float *counts,
                                      size_t n_counts, cft_error *err) {
    return guard(err, [&] {
        if (i >= cft_session_importance_count(session) || !out) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "importance " + std::to_string(i) + " of " + std::to_string(cft_session_importance_count(session)));
        }
        if (!session->importance->error().empty()) {
            throw failure(CFT_ERR_INTERNAL, "importance: " + session->importance->error());
        }
        const auto &[name, e] = *std::next(session->importance->entries().begin(), std::ptrdiff_t(i));
        if (sums || counts) {
            if (n_sums != e.sums.size() || n_counts != e.counts.size()) {
                throw failure(CFT_ERR_INVALID_ARGUMENT, "importance of " + name + " has " + std::to_string(e.sums.size()) + " sums and " +
                                                            std::to_string(e.counts.size()) + " counts");
            }
            for (size_t k = 0; k < n_sums; k++) {
                sums[k] = float(e.sums[k]);
            }
            for (size_t k = 0; k < n_counts; k++) {
                counts[k] = float(e.counts[k]);
            }
        }
        *out = cft_importance{};
        std::memcpy(out->name, name.data(), std::min(name.size(), sizeof out->name - 1));
        out->n_columns  = size_t(e.n_columns);
        out->n_matrices = e.counts.size();
    });
}
