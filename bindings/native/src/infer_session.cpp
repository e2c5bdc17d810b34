// infer_session.cpp - generation over libllama. Everything is checked in words first: libllama asserts, and an assert
// ends the process.
#include "cft_infer.h"
#include "failure.h"
#include "file_faults.h"
#include "infer_file.h"
#include "infer_sample.h"
#include "infer_session.h"
#include "library.h"
#include "processors.h"

#include "llama.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace cft;

namespace {

void need(bool condition, const std::string &message) {
    if (!condition) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, message);
    }
}

void check_params(const cft_session_params &p) {
    need(p.n_ctx > 0, "n_ctx is " + std::to_string(p.n_ctx) + ", must be at least 1");
    need(p.n_batch > 0, "n_batch is " + std::to_string(p.n_batch) + ", must be at least 1");
    const int32_t most = int32_t(llama_max_parallel_sequences());
    need(p.n_sequences > 0 && p.n_sequences <= most,
         "n_sequences is " + std::to_string(p.n_sequences) + ", must be from 1 to " + std::to_string(most));
    need(p.n_sequences <= p.n_ctx, "n_sequences is above n_ctx");
    need(p.n_threads >= 0 && p.n_threads <= GGML_MAX_N_THREADS, "n_threads is " + std::to_string(p.n_threads));
    need(p.max_sequence >= 0, "max_sequence is " + std::to_string(p.max_sequence) + ", must not be negative");
    need(p.n_gpu_layers >= 0, "n_gpu_layers is " + std::to_string(p.n_gpu_layers) + ", must not be negative");
    need(std::isfinite(p.adapter_scale), "adapter_scale is not finite");
    need(std::isfinite(p.rope_freq_base) && p.rope_freq_base >= 0 && std::isfinite(p.rope_freq_scale) && p.rope_freq_scale >= 0,
         "rope_freq_base and rope_freq_scale must be 0 (the model's) or positive");
    need(!p.importance || p.n_gpu_layers == 0, "importance is collected on the CPU: n_gpu_layers must be 0");
    if (p.n_gpu_layers > 0 && !llama_supports_gpu_offload()) {
        throw failure(CFT_ERR_DEVICE, "n_gpu_layers is " + std::to_string(p.n_gpu_layers) + ", but no GPU backend is loaded");
    }
}

// choose_rope_factors has libllama take the factors that sequences of max_sequence tokens have. It compares n_ctx with the original
// context that the file states, so one is stated that makes the comparison come out right.
void choose_rope_factors(const gguf_outline &outline, int32_t max_sequence, llama_model_kv_override &original) {
    const auto named = [](const gguf_tensor &t) { return t.name == "rope_factors_long.weight"; };
    const auto arch  = outline.values.find("general.architecture");
    if (max_sequence == 0 || arch == outline.values.end() || std::none_of(outline.tensors.begin(), outline.tensors.end(), named)) {
        return;
    }
    const std::string prefix = arch->second.text + ".", key = prefix + "rope.scaling.original_context_length";
    auto              stated = outline.values.find(key);
    if (stated == outline.values.end()) {
        stated = outline.values.find(prefix + "context_length");
    }
    if (stated == outline.values.end() || key.size() >= sizeof original.key) {
        return; // libllama refuses the file
    }
    original.tag     = LLAMA_KV_OVERRIDE_TYPE_INT;
    original.val_i64 = uint64_t(max_sequence) > stated->second.number ? 1 : INT32_MAX;
    std::memcpy(original.key, key.c_str(), key.size() + 1);
}

void load_model(cft_session &s, const std::string &path, const cft_session_params &p) {
    const gguf_outline outline = check_gguf_file(path);
    check_vocabulary(path, outline);
    check_model_keys(path, outline);
    llama_model_kv_override overrides[2] = {}; // the second, without a key, ends the list
    choose_rope_factors(outline, p.max_sequence, overrides[0]);
    log_capture        log;
    assertions_throw   assertions;
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t none[] = {nullptr};
    params.n_gpu_layers       = p.n_gpu_layers;
    params.use_mmap           = !p.no_mmap;
    params.use_mlock          = p.mlock != 0;
    params.kv_overrides       = overrides[0].key[0] != 0 ? overrides : nullptr;
    if (p.n_gpu_layers == 0) {
        params.devices = none; // otherwise a GPU would still take the large products
    }
    s.model.reset(llama_model_load_from_file(path.c_str(), params));
    if (!s.model) {
        throw failure(CFT_ERR_FORMAT, "load model " + path + ": " + log.errors());
    }
    if (!llama_model_has_decoder(s.model.get()) || llama_model_has_encoder(s.model.get())) {
        throw failure(CFT_ERR_UNSUPPORTED, "load model " + path + ": not a decoder-only model, cannot generate");
    }
    s.vocab   = llama_model_get_vocab(s.model.get());
    s.n_vocab = llama_vocab_n_tokens(s.vocab);
}

// check_cache_memory refuses a cache that cannot fit: libllama would allocate it, fill it, and be killed.
void check_cache_memory(const llama_model *model, const cft_session_params &p) {
    const int32_t heads    = std::max(llama_model_n_head(model), 1);
    const double  head_dim = double(llama_model_n_embd(model)) / heads;
    const double  bytes    = 2.0 * p.n_ctx * llama_model_n_layer(model) * llama_model_n_head_kv(model) * head_dim * (p.f32_kv ? 4 : 2);
    const auto    free     = double(host_memory().free);
    if (p.n_gpu_layers == 0 && bytes > free) {
        throw failure(CFT_ERR_NO_MEMORY, "a cache for n_ctx " + std::to_string(p.n_ctx) + " takes about " +
                                             std::to_string(uint64_t(bytes) >> 20) + " MiB, free are " +
                                             std::to_string(uint64_t(free) >> 20) + " MiB");
    }
}

void make_context(cft_session &s, const cft_session_params &p) {
    check_cache_memory(s.model.get(), p);
    log_capture          log;
    assertions_throw     assertions;
    const int32_t        threads = p.n_threads > 0 ? p.n_threads : available_processors();
    llama_context_params params  = llama_context_default_params();
    params.n_ctx                 = uint32_t(p.n_ctx);
    params.n_batch               = uint32_t(std::min(p.n_batch, p.n_ctx));
    params.n_seq_max             = uint32_t(p.n_sequences);
    params.n_threads             = threads;
    params.n_threads_batch       = threads;
    params.kv_unified            = true; // n_ctx is shared by all sequences, and they can share cells
    params.no_perf               = true;
    params.embeddings            = p.embeddings != 0;
    params.pooling_type          = p.embeddings ? LLAMA_POOLING_TYPE_NONE : params.pooling_type;
    params.rope_freq_base        = p.rope_freq_base;
    params.rope_freq_scale       = p.rope_freq_scale;
    if (p.f32_kv) {
        params.type_k          = GGML_TYPE_F32;
        params.type_v          = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    if (p.importance) {
        s.importance             = std::make_unique<importance>();
        params.cb_eval           = importance::observe;
        params.cb_eval_user_data = s.importance.get();
    }
    s.context.reset(llama_init_from_model(s.model.get(), params));
    if (!s.context) {
        throw failure(CFT_ERR_NO_MEMORY, "make context of n_ctx " + std::to_string(p.n_ctx) + ": " + log.errors());
    }
    s.memory = llama_get_memory(s.context.get());
    if (!s.memory) {
        throw failure(CFT_ERR_UNSUPPORTED, "the model has no cache, cannot generate");
    }
    s.n_batch     = int32_t(llama_n_batch(s.context.get()));
    s.n_sequences = p.n_sequences;
    s.embeddings  = p.embeddings != 0;
}

void load_adapter(cft_session &s, const std::string &path, float scale) {
    check_adapter(path, check_gguf_file(path));
    log_capture      log;
    assertions_throw assertions;
    s.adapter.reset(llama_adapter_lora_init(s.model.get(), path.c_str()));
    if (!s.adapter) {
        throw failure(CFT_ERR_FORMAT, "load adapter " + path + ": " + log.errors());
    }
    if (llama_set_adapter_lora(s.context.get(), s.adapter.get(), scale) != 0) {
        throw failure(CFT_ERR_FORMAT, "use adapter " + path + ": " + log.errors());
    }
}

void need_sequence(const cft_session *s, int32_t seq_id) {
    need(s != nullptr, "session is NULL");
    need(seq_id >= 0 && seq_id < s->n_sequences,
         "sequence " + std::to_string(seq_id) + " of " + std::to_string(s->n_sequences));
}

// check_batch makes sure of tokens, sequences, and that each sequence goes on where its cache ends.
void check_batch(const cft_session *s, const int32_t *tokens, const int32_t *positions, const int32_t *seq_ids, size_t n) {
    need(n > 0, "no tokens to decode");
    need(n <= size_t(s->n_batch), std::to_string(n) + " tokens, n_batch is " + std::to_string(s->n_batch));
    std::vector<int32_t> next(size_t(s->n_sequences), -1);
    for (size_t i = 0; i < n; i++) {
        const std::string where = "token " + std::to_string(i) + ": ";
        need(tokens[i] >= 0 && tokens[i] < s->n_vocab,
             where + std::to_string(tokens[i]) + " is not in the vocabulary of " + std::to_string(s->n_vocab));
        need(seq_ids[i] >= 0 && seq_ids[i] < s->n_sequences,
             where + "sequence " + std::to_string(seq_ids[i]) + " of " + std::to_string(s->n_sequences));
        int32_t &expected = next[size_t(seq_ids[i])];
        if (expected < 0) {
            expected = llama_memory_seq_pos_max(s->memory, seq_ids[i]) + 1;
        }
        need(positions[i] == expected, where + "position " + std::to_string(positions[i]) + " in sequence " +
                                           std::to_string(seq_ids[i]) + ", expected " + std::to_string(expected));
        expected++;
    }
}

// decoded_logits returns the logits of the last decode's token i.
const float *decoded_logits(cft_session *s, size_t i) {
    need(s != nullptr, "session is NULL");
    need(i < s->wanted.size(), "token " + std::to_string(i) + " of a decode of " + std::to_string(s->wanted.size()));
    need(s->wanted[i] != 0, "logits of token " + std::to_string(i) + " were not wanted");
    log_capture  log;
    const float *logits = llama_get_logits_ith(s->context.get(), int32_t(i));
    if (!logits) {
        throw failure(CFT_ERR_INTERNAL, "read logits of token " + std::to_string(i) + ": " + log.errors());
    }
    return logits;
}

} // namespace

cft_status cft_session_new(const char *model_path, size_t model_path_len, const char *adapter_path, size_t adapter_path_len,
                           const cft_session_params *params, cft_session **out, cft_error *err) {
    return guard_files(err, [&] {
        need(params != nullptr && out != nullptr, "params or out is NULL");
        need(model_path != nullptr && model_path_len > 0, "model path is empty");
        check_params(*params);
        cpu_device();
        auto s = std::make_unique<cft_session>();
        load_model(*s, std::string(model_path, model_path_len), *params);
        make_context(*s, *params);
        if (adapter_path && adapter_path_len > 0) {
            load_adapter(*s, std::string(adapter_path, adapter_path_len), params->adapter_scale);
        }
        check_file_faults();
        *out = s.release();
    });
}

void cft_session_free(cft_session *session) {
    delete session;
    give_memory_back();
}

cft_status cft_session_decode(cft_session *session, const int32_t *tokens, const int32_t *positions,
                              const int32_t *seq_ids, const int8_t *want, size_t n, cft_error *err) {
    return guard_files(err, [&] {
        need(session != nullptr, "session is NULL");
        need(tokens && positions && seq_ids && want, "tokens, positions, seq_ids or want is NULL");
        check_batch(session, tokens, positions, seq_ids, n);

        // llama_batch has pointers to non-const, but decoding only reads.
        std::vector<int32_t>        counts(n, 1), ids(seq_ids, seq_ids + n);
        std::vector<llama_seq_id *> id_pointers(n);
        std::vector<int8_t>         wanted(want, want + n);
        for (size_t i = 0; i < n; i++) {
            id_pointers[i] = &ids[i];
        }
        llama_batch batch = {int32_t(n), const_cast<int32_t *>(tokens), nullptr, const_cast<int32_t *>(positions),
                             counts.data(), id_pointers.data(), wanted.data()};
        session->wanted.clear();
        log_capture   log;
        const int32_t status = llama_decode(session->context.get(), batch);
        if (status == 1) {
            throw failure(CFT_ERR_NO_MEMORY, "decode: the cache of " + std::to_string(llama_n_ctx(session->context.get())) +
                                                 " tokens has no room for " + std::to_string(n) + " more");
        }
        if (status != 0) {
            throw failure(CFT_ERR_DEVICE, "decode: libllama returned " + std::to_string(status) + ": " + log.errors());
        }
        check_file_faults();
        session->wanted.swap(wanted);
    });
}

cft_status cft_session_logits(cft_session *session, size_t i, float *out, size_t n, cft_error *err) {
    return guard(err, [&] {
        const float *logits = decoded_logits(session, i);
        need(out != nullptr, "out is NULL");
        need(n == size_t(session->n_vocab), "room for " + std::to_string(n) + " logits, the vocabulary has " + std::to_string(session->n_vocab));
        std::memcpy(out, logits, n * sizeof(float));
    });
}

cft_status cft_session_sample(cft_session *session, size_t i, const cft_sampling *sampling, int32_t *token, cft_error *err) {
    return guard(err, [&] {
        need(sampling != nullptr && token != nullptr, "sampling or token is NULL");
        check_sampling(*sampling);
        *token = sample_token(decoded_logits(session, i), size_t(session->n_vocab), *sampling);
    });
}

cft_status cft_session_forget(cft_session *session, int32_t seq_id, cft_error *err) {
    return guard(err, [&] {
        need(session != nullptr, "session is NULL");
        if (seq_id == -1) {
            llama_memory_clear(session->memory, false);
            return;
        }
        need_sequence(session, seq_id);
        if (!llama_memory_seq_rm(session->memory, seq_id, -1, -1)) {
            throw failure(CFT_ERR_INTERNAL, "sequence " + std::to_string(seq_id) + " could not be removed");
        }
    });
}

cft_status cft_session_share(cft_session *session, int32_t from, int32_t to, int32_t n, cft_error *err) {
    return guard(err, [&] {
        need_sequence(session, from);
        need_sequence(session, to);
        need(from != to, "sequence " + std::to_string(from) + " cannot be shared with itself");
        const int32_t length = llama_memory_seq_pos_max(session->memory, from) + 1;
        need(n > 0 && n <= length, "share up to position " + std::to_string(n) + ", sequence " + std::to_string(from) +
                                       " has " + std::to_string(length));
        need(llama_memory_seq_pos_max(session->memory, to) < 0, "sequence " + std::to_string(to) + " is not empty: forget it first");
        const bool state = llama_model_is_recurrent(session->model.get()) || llama_model_is_hybrid(session->model.get());
        if (state && n != length) {
            throw failure(CFT_ERR_UNSUPPORTED, "a recurrent model can share whole sequences only");
        }
        llama_memory_seq_cp(session->memory, from, to, 0, n);
    });
}
