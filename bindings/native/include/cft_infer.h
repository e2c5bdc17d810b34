// cft_infer.h - inference half of cftune's native engine: vocabulary and generation through libllama, so that what is
// measured is what users will run. Rules as in cft.h.
#ifndef CFT_INFER_H
#define CFT_INFER_H

#include "cft.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- vocabulary

typedef struct cft_vocab cft_vocab;

typedef struct cft_vocab_info {
    int32_t n_tokens;
    int32_t bos, eos, eot, nl, pad; // -1 where the model has none
    int32_t add_bos, add_eos;       // what the GGUF asks for
    int32_t add_space_prefix;       // SentencePiece: a space is put before text
} cft_vocab_info;

// cft_vocab_load reads only the vocabulary of a GGUF.
CFT_API cft_status cft_vocab_load(const char *path, size_t path_len, cft_vocab **out, cft_error *err);
CFT_API void       cft_vocab_free(cft_vocab *vocab);
CFT_API cft_status cft_vocab_get_info(const cft_vocab *vocab, cft_vocab_info *out, cft_error *err);

// cft_vocab_tokenize writes the tokens of text; no BOS or EOS is added. parse_special: text that spells a control token
// becomes that token (for template markup); otherwise it stays text (for what users wrote). *n_out gets the number
// of tokens; if it is above capacity, nothing is written to tokens and the status is CFT_OK: call again.
CFT_API cft_status cft_vocab_tokenize(const cft_vocab *vocab, const char *text, size_t text_len, int32_t parse_special,
                                      int32_t *tokens, size_t capacity, size_t *n_out, cft_error *err);
// cft_vocab_piece writes the bytes of one token (control tokens as their text when special is 1, as nothing when 0).
CFT_API cft_status cft_vocab_piece(const cft_vocab *vocab, int32_t token, int32_t special,
                                   char *buf, size_t capacity, size_t *n_out, cft_error *err);
// is_control, is_eog: 0 or 1.
CFT_API cft_status cft_vocab_token_kind(const cft_vocab *vocab, int32_t token, int32_t *is_control, int32_t *is_eog, cft_error *err);
// cft_vocab_chat_template writes the Jinja source of the model's chat template. *n_out gets its length, 0 where the model
// has none; if it is above capacity, nothing is written.
CFT_API cft_status cft_vocab_chat_template(const cft_vocab *vocab, char *buf, size_t capacity, size_t *n_out, cft_error *err);

// ---- sessions

typedef struct cft_session cft_session;

typedef struct cft_session_params {
    int32_t n_ctx;        // tokens, shared by all sequences
    int32_t n_batch;      // most tokens of one decode call
    int32_t n_sequences;  // most sequences at a time, 1..
    int32_t n_threads;    // 0 = all processors that this process may use
    int32_t n_gpu_layers; // 0 = CPU
    float   adapter_scale;// usually 1
    int32_t f32_kv;       // 1: F32 KV cache and no flash attention (exact comparisons); 0: llama.cpp's defaults
    int32_t embeddings;   // 1: decode also keeps the last layer's output of wanted tokens (cft_session_embedding)
    int32_t no_mmap;      // 1: weights are read into memory instead of mapped
    int32_t mlock;        // 1: weights are kept from being swapped out
    float   rope_freq_base, rope_freq_scale; // 0: the model's
    int32_t max_sequence; // tokens that one sequence may come to; 0 = n_ctx. Of models with rotary factors for short and for long
                          // contexts it decides which ones are used; llama.cpp by itself goes by n_ctx, however many share it
    int32_t importance;   // 1: decodes collect how much each column of a weight counts (cft_session_importance_get); CPU only
} cft_session_params;

// cft_session_new loads a model, with the LoRA adapter at adapter_path unless that is empty, and makes a context.
CFT_API cft_status cft_session_new(const char *model_path, size_t model_path_len,
                                   const char *adapter_path, size_t adapter_path_len,
                                   const cft_session_params *params, cft_session **out, cft_error *err);
CFT_API void       cft_session_free(cft_session *session);

// cft_session_decode runs n tokens; token i belongs to sequence seq_ids[i] at position positions[i]. want[i] = 1 keeps
// its logits, readable by cft_session_logits / cft_session_sample with that i until the next decode.
CFT_API cft_status cft_session_decode(cft_session *session, const int32_t *tokens, const int32_t *positions,
                                      const int32_t *seq_ids, const int8_t *want, size_t n, cft_error *err);
// out has n_vocab floats.
CFT_API cft_status cft_session_logits(cft_session *session, size_t i, float *out, size_t n, cft_error *err);

typedef struct cft_sampling {
    float    temperature; // 0 = greedy
    int32_t  top_k;       // 0 = all
    float    top_p;       // 1 = all
    float    min_p;       // 0 = all
    uint64_t seed;
    uint64_t counter;     // which draw of the seed this is; the same (seed, counter, logits) gives the same token
} cft_sampling;

// cft_session_sample draws the next token from the logits of decode's token i.
CFT_API cft_status cft_session_sample(cft_session *session, size_t i, const cft_sampling *sampling, int32_t *token, cft_error *err);
// cft_session_forget removes a sequence's cache (seq_id -1: all).
CFT_API cft_status cft_session_forget(cft_session *session, int32_t seq_id, cft_error *err);
// cft_session_share lets sequence `to` see what sequence `from` has in the cache up to position n (exclusive).
CFT_API cft_status cft_session_share(cft_session *session, int32_t from, int32_t to, int32_t n, cft_error *err);

// cft_session_threads sets the number of threads of the decodes to come; 0 = all processors that this process may use.
CFT_API cft_status cft_session_threads(cft_session *session, int32_t n_threads, cft_error *err);
// cft_session_trim removes what a sequence has in the cache from position n on.
CFT_API cft_status cft_session_trim(cft_session *session, int32_t seq_id, int32_t n, cft_error *err);
// cft_session_embedding writes the normed output of the last layer for decode's token i; n must be the model's width,
// which cft_session_width returns (0 for NULL).
CFT_API int32_t    cft_session_width(const cft_session *session);
CFT_API cft_status cft_session_embedding(cft_session *session, size_t i, float *out, size_t n, cft_error *err);
// cft_session_state_read writes the cache and the last logits; *n_out gets their size, and if that is above capacity nothing
// is written. cft_session_state_write puts back what was read from a session of the same model and parameters; other
// bytes are refused, or leave the session empty.
CFT_API cft_status cft_session_state_read(cft_session *session, void *buf, size_t capacity, size_t *n_out, cft_error *err);
CFT_API cft_status cft_session_state_write(cft_session *session, const void *data, size_t n, cft_error *err);

// ---- importance

typedef struct cft_importance {
    char   name[128];             // of the weight
    size_t n_columns, n_matrices; // more than one matrix: experts
} cft_importance;

// cft_session_importance_count is the number of weights that decodes have collected for; 0 where importance was not asked for.
CFT_API size_t     cft_session_importance_count(const cft_session *session);
// cft_session_importance_get describes the i-th of them; unless sums and counts are both NULL it also writes the sums of squares of
// what its columns were multiplied by (n_sums = n_matrices * n_columns) and of how many rows they are (n_counts = n_matrices).
CFT_API cft_status cft_session_importance_get(const cft_session *session, size_t i, cft_importance *out, float *sums, size_t n_sums,
                                              float *counts, size_t n_counts, cft_error *err);

// ---- files

// cft_merge_rows widens n_rows rows of a weight of ggml's type (as they lie in a file) to F32 and adds the low-rank
// product of an adapter to them: out [n_rows][cols] = rows + scale * b [n_rows][rank] * a [rank][cols].
// raw_bytes must be what n_rows rows of that type take. b and a may be NULL with rank 0: rows are only widened.
CFT_API cft_status cft_merge_rows(int32_t type, const void *raw, size_t raw_bytes, size_t n_rows, size_t cols, const float *b,
                                  const float *a, size_t rank, float scale, int32_t n_threads, float *out, cft_error *err);

// cft_model_requantize writes a copy of the GGUF at from, all weights of which have the file type ftype (llama.h's
// LLAMA_FTYPE numbers: 0 = F32, 1 = F16, 7 = Q8_0, 15 = Q4_K_M ...), by way of F32. What is at to is overwritten; after
// an error, half a file may be left there.
// n_importance weights (0: none) say how much each of their columns counts: names has their names one after the other, each
// with a terminating zero; counts the number of their values; values all of these, one after the other.
CFT_API cft_status cft_model_requantize(const char *from, size_t from_len, const char *to, size_t to_len, int32_t ftype,
                                        int32_t n_threads, const char *names, size_t n_importance, const size_t *counts,
                                        const float *values, cft_error *err);

#ifdef __cplusplus
}
#endif
#endif
