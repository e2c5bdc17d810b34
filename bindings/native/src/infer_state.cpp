// infer_state.cpp - what a session knows, read out and put back.
#include "failure.h"
#include "infer_session.h"
#include "library.h"
#include "processors.h"

#include <cstring>
#include <string>

using namespace cft;

namespace {

void need(bool condition, const std::string &message) {
    if (!condition) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, message);
    }
}

} // namespace

cft_status cft_session_threads(cft_session *session, int32_t n_threads, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr, "session is NULL");
        need(n_threads >= 0 && n_threads <= GGML_MAX_N_THREADS, "n_threads is " + std::to_string(n_threads));
        const int32_t n = n_threads > 0 ? n_threads : available_processors();
        llama_set_n_threads(session->context.get(), n, n);
    });
}

cft_status cft_session_trim(cft_session *session, int32_t seq_id, int32_t n, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr, "session is NULL");
        need(seq_id >= 0 && seq_id < session->n_sequences, "sequence " + std::to_string(seq_id) + " of " + std::to_string(session->n_sequences));
        const int32_t length = llama_memory_seq_pos_max(session->memory, seq_id) + 1;
        need(n >= 0 && n <= length, "trim at position " + std::to_string(n) + ", the sequence has " + std::to_string(length));
        if (n < length && !llama_memory_seq_rm(session->memory, seq_id, n, -1)) {
            throw failure(CFT_ERR_UNSUPPORTED, "the end of a recurrent model's sequence cannot be taken back");
        }
    });
}

int32_t cft_session_width(const cft_session *session) { return session ? llama_model_n_embd(session->model.get()) : 0; }

cft_status cft_session_embedding(cft_session *session, size_t i, float *out, size_t n, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr && out != nullptr, "session or out is NULL");
        need(session->embeddings, "the session was made without embeddings");
        need(i < session->wanted.size() && session->wanted[i], "token " + std::to_string(i) + " of the last decode was not wanted");
        need(n == size_t(cft_session_width(session)), "room for " + std::to_string(n) + " values, the width is " + std::to_string(cft_session_width(session)));
        log_capture  log;
        const float *values = llama_get_embeddings_ith(session->context.get(), int32_t(i));
        if (!values) {
            throw failure(CFT_ERR_INTERNAL, "read the embedding of token " + std::to_string(i) + ": " + log.errors());
        }
        std::memcpy(out, values, n * sizeof(float));
    });
}

cft_status cft_session_state_read(cft_session *session, void *buf, size_t capacity, size_t *n_out, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr && n_out != nullptr && (buf != nullptr || capacity == 0), "session, buf or n_out is NULL");
        log_capture  log;
        const size_t size = llama_state_get_size(session->context.get());
        if (size <= capacity && llama_state_get_data(session->context.get(), static_cast<uint8_t *>(buf), capacity) != size) {
            throw failure(CFT_ERR_INTERNAL, "read the state: " + log.errors());
        }
        *n_out = size;
    });
}

cft_status cft_session_state_write(cft_session *session, const void *data, size_t n, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr && data != nullptr, "session or data is NULL");
        log_capture      log;
        assertions_throw assertions;
        session->wanted.clear();
        const size_t used = llama_state_set_data(session->context.get(), static_cast<const uint8_t *>(data), n);
        if (used != n) {
            llama_memory_clear(session->memory, true);
            throw failure(CFT_ERR_FORMAT, "the state is not of this model and these parameters: " + log.errors());
        }
    });
}
