// infer_vocab.cpp - the vocabulary half of cft_infer.h, over libllama.
#include "cft_infer.h"
#include "failure.h"
#include "infer_file.h"
#include "infer_words.h"
#include "library.h"

#include "llama.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace cft;

struct cft_vocab {
    struct closer {
        void operator()(llama_model *m) const { llama_model_free(m); }
    };
    std::unique_ptr<llama_model, closer> model;
    const llama_vocab                   *vocab = nullptr;
    std::unique_ptr<word_cache>          words; // NULL where the vocabulary does not allow it
};

namespace {

void need(bool condition, const std::string &message) {
    if (!condition) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, message);
    }
}

// first_bad_utf8 returns the offset of the first byte that is not part of well-formed UTF-8, or n.
size_t first_bad_utf8(const char *text, size_t n) {
    const auto *s = reinterpret_cast<const unsigned char *>(text);
    for (size_t i = 0; i < n;) {
        const unsigned char c      = s[i];
        const size_t        length = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
        if (length == 0 || i + length > n) {
            return i;
        }
        for (size_t k = 1; k < length; k++) {
            if ((s[i + k] & 0xc0) != 0x80) {
                return i;
            }
        }
        // Overlong forms, surrogates and values past U+10FFFF show in the second byte.
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
            (c == 0xf4 && s[i + 1] > 0x8f)) {
            return i;
        }
        i += length;
    }
    return n;
}

// add_space_prefix is what libllama does before text; it has no function that tells.
bool add_space_prefix(const cft_vocab *v) {
    char       value[16];
    const bool by_default = llama_vocab_type(v->vocab) == LLAMA_VOCAB_TYPE_SPM;
    if (llama_model_meta_val_str(v->model.get(), "tokenizer.ggml.add_space_prefix", value, sizeof value) < 0) {
        return by_default;
    }
    return std::string(value) == "true";
}

void need_token(const cft_vocab *vocab, int32_t token) {
    need(vocab != nullptr, "vocab is NULL");
    const int32_t n = llama_vocab_n_tokens(vocab->vocab);
    need(token >= 0 && token < n, "token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(n));
}

} // namespace

cft_status cft_vocab_load(const char *path, size_t path_len, cft_vocab **out, cft_error *err) {
    return guard(err, [&] {
        need(out != nullptr, "out is NULL");
        need(path != nullptr && path_len > 0, "model path is empty");
        const std::string file(path, path_len);
        check_vocabulary(file, check_gguf_file(file));
        log_capture        log;
        assertions_throw   assertions;
        llama_model_params params = llama_model_default_params();
        params.vocab_only         = true;
        auto v                    = std::make_unique<cft_vocab>();
        v->model.reset(llama_model_load_from_file(file.c_str(), params));
        if (!v->model) {
            throw failure(CFT_ERR_FORMAT, "load vocabulary of " + file + ": " + log.errors());
        }
        v->vocab = llama_model_get_vocab(v->model.get());
        char pre[64];
        if (llama_model_meta_val_str(v->model.get(), "tokenizer.ggml.pre", pre, sizeof pre) >= 0) {
            v->words = word_cache::make(v->vocab, pre);
        }
        *out = v.release();
    });
}

void cft_vocab_free(cft_vocab *vocab) {
    delete vocab;
    give_memory_back();
}

cft_status cft_vocab_get_info(const cft_vocab *vocab, cft_vocab_info *out, cft_error *err) {
    return guard(err, [&] {
        need(vocab != nullptr && out != nullptr, "vocab or out is NULL");
        const llama_vocab *v = vocab->vocab;
        cft_vocab_info     info;
        info.n_tokens         = llama_vocab_n_tokens(v);
        info.bos              = llama_vocab_bos(v);
        info.eos              = llama_vocab_eos(v);
        info.eot              = llama_vocab_eot(v);
        info.nl               = llama_vocab_nl(v);
        info.pad              = llama_vocab_pad(v);
        info.add_bos          = llama_vocab_get_add_bos(v) ? 1 : 0;
        info.add_eos          = llama_vocab_get_add_eos(v) ? 1 : 0;
        info.add_space_prefix = add_space_prefix(vocab) ? 1 : 0;
        *out                  = info;
    });
}

cft_status cft_vocab_tokenize(const cft_vocab *vocab, const char *text, size_t text_len, int32_t parse_special,
                              int32_t *tokens, size_t capacity, size_t *n_out, cft_error *err) {
    return guard(err, [&] {
        need(vocab != nullptr && n_out != nullptr, "vocab or n_out is NULL");
        need(text != nullptr || text_len == 0, "text is NULL");
        need(tokens != nullptr || capacity == 0, "tokens is NULL");
        need(text_len <= INT_MAX / 2, "text of " + std::to_string(text_len) + " bytes is too long");
        if (text_len == 0) {
            *n_out = 0;
            return;
        }
        const size_t bad = first_bad_utf8(text, text_len);
        need(bad == text_len, "text is not UTF-8 at byte " + std::to_string(bad));
        std::vector<int32_t> found;
        if (vocab->words && parse_special == 0) {
            vocab->words->tokenize(text, text_len, found);
        } else {
            append_tokens(vocab->vocab, text, text_len, parse_special != 0, found);
        }
        if (found.size() <= capacity) {
            std::copy(found.begin(), found.end(), tokens);
        }
        *n_out = found.size();
    });
}

cft_status cft_vocab_piece(const cft_vocab *vocab, int32_t token, int32_t special, char *buf, size_t capacity,
                           size_t *n_out, cft_error *err) {
    return guard(err, [&] {
        need_token(vocab, token);
        need(n_out != nullptr, "n_out is NULL");
        need(buf != nullptr || capacity == 0, "buf is NULL");
        const int32_t room = int32_t(capacity < INT_MAX ? capacity : INT_MAX);
        const int32_t n    = llama_token_to_piece(vocab->vocab, token, buf, room, 0, special != 0);
        *n_out             = size_t(n < 0 ? -n : n);
    });
}

cft_status cft_vocab_token_kind(const cft_vocab *vocab, int32_t token, int32_t *is_control, int32_t *is_eog, cft_error *err) {
    return guard(err, [&] {
        need_token(vocab, token);
        need(is_control != nullptr && is_eog != nullptr, "is_control or is_eog is NULL");
        const bool control = llama_vocab_is_control(vocab->vocab, token);
        const bool eog     = llama_vocab_is_eog(vocab->vocab, token);
        *is_control        = control ? 1 : 0;
        *is_eog            = eog ? 1 : 0;
    });
}

cft_status cft_vocab_chat_template(const cft_vocab *vocab, char *buf, size_t capacity, size_t *n_out, cft_error *err) {
    return guard(err, [&] {
        need(vocab != nullptr && n_out != nullptr, "vocab or n_out is NULL");
        need(buf != nullptr || capacity == 0, "buf is NULL");
        const char  *source = llama_model_chat_template(vocab->model.get(), nullptr);
        const size_t n      = source ? std::strlen(source) : 0;
        if (n > 0 && n <= capacity) {
            std::memcpy(buf, source, n);
        }
        *n_out = n;
    });
}
