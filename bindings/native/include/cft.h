// cft.h - training half of cftune's native engine: LoRA forward and backward over the frozen weights of a GGUF.
//
// Rules of this interface (cft_infer.h follows them too):
//  - Nothing throws across it, prints, exits or installs a handler. Reasons come back in the caller's cft_error.
//  - On failure no out-parameter is written; cft_trainer_apply takes the whole step or none of it.
//  - Pointers live only for the call. Strings are pointer + length, UTF-8, need no terminating zero.
//  - Each handle has one free function; freeing NULL does nothing. A handle is used by one thread at a time,
//    except that cft_trainer_cancel may be called from any thread.
//  - The engine never writes files: tensors are read out and written in, and the caller stores them.
//
// Matrices are row-major, the last index contiguous. n_tokens is the length of a pack.
#ifndef CFT_H
#define CFT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define CFT_API __declspec(dllexport)
#else
#define CFT_API __attribute__((visibility("default")))
#endif

typedef enum cft_status {
    CFT_OK                   = 0,
    CFT_ERR_INVALID_ARGUMENT = 1, // a value out of range, a wrong shape
    CFT_ERR_IO               = 2, // a file that cannot be opened or read
    CFT_ERR_FORMAT           = 3, // a file that is damaged or not what it should be
    CFT_ERR_UNSUPPORTED      = 4, // an architecture, type or option that we do not train
    CFT_ERR_NO_MEMORY        = 5, // does not fit the memory or the stated limit
    CFT_ERR_DEVICE           = 6, // a backend is missing or failed
    CFT_ERR_NON_FINITE       = 7, // loss or gradient is NaN or infinite; weights are untouched
    CFT_ERR_CANCELLED        = 8, // cft_trainer_cancel was called
    CFT_ERR_INTERNAL         = 9, // a broken invariant of ours
} cft_status;

#define CFT_ERROR_SIZE 1024
typedef struct cft_error {
    char message[CFT_ERROR_SIZE]; // zero-terminated, cut at the end if longer
} cft_error;

#define CFT_IGNORE_TARGET (-100) // a position without a target

// Target modules, as a bit set: the tensors of a layer that get an adapter. Families with fused tensors have ATTN_QKV for q, k
// and v, and FFN_UP for gate and up (rows in this order), each with one A and one B. Mixtures of experts have no FFN targets.
// TOKEN_EMBD and OUTPUT, the embedding and the head, are in no layer, and targets of models only that have two tensors for them.
enum {
    CFT_TARGET_ATTN_Q      = 1 << 0,
    CFT_TARGET_ATTN_K      = 1 << 1,
    CFT_TARGET_ATTN_V      = 1 << 2,
    CFT_TARGET_ATTN_OUTPUT = 1 << 3,
    CFT_TARGET_FFN_GATE    = 1 << 4,
    CFT_TARGET_FFN_UP      = 1 << 5,
    CFT_TARGET_FFN_DOWN    = 1 << 6,
    CFT_TARGET_ATTN_QKV    = 1 << 7,
    CFT_TARGET_ALL_LINEAR  = (1 << 8) - 1, // all of the above that the model has; any other set must be the model's
    CFT_TARGET_TOKEN_EMBD  = 1 << 8,
    CFT_TARGET_OUTPUT      = 1 << 9,
};

// ---- libraries and devices

// cft_headers returns a digest of the headers of this interface that the library was built with. A program that was compiled with others
// must not go on: all that both know of each other's structs may be wrong, and what is written past an end is noticed nowhere.
CFT_API const char *cft_headers(void);

// cft_init loads the ggml backends found in the folder backend_dir (where libggml-cpu*.so lies). Once per process.
CFT_API cft_status cft_init(const char *backend_dir, size_t backend_dir_len, cft_error *err);

typedef enum cft_trains {
    CFT_TRAINS_NOT      = 0,
    CFT_TRAINS          = 1, // by kernels of our own
    CFT_TRAINS_PORTABLE = 2, // by ggml's ops alone
} cft_trains;

typedef struct cft_device {
    char     name[64];        // "CPU", "CUDA0"
    char     description[192];
    uint64_t memory_total;    // bytes
    uint64_t memory_free;     // bytes
    int32_t  can_train;       // cft_trains
} cft_device;

CFT_API size_t     cft_device_count(void);
CFT_API cft_status cft_device_get(size_t index, cft_device *out, cft_error *err);

// cft_cuda_state writes, as text with a final NUL and cut where it is longer, how many CUDA devices there are, or why none can be
// used: no library for them, no driver, no device.
CFT_API void cft_cuda_state(char *buf, size_t capacity);

// cft_log_drain copies collected native log lines (ggml, llama.cpp, ours) into buf, oldest first, separated by
// newlines, and forgets them. Returns the number of bytes written; 0 when there are none.
CFT_API size_t cft_log_drain(char *buf, size_t capacity);

// cft_stacks writes where every thread of the process stands, as text of at most capacity bytes without a final NUL, and
// returns its length. It may be called from any thread at any time; a thread that does not answer is told as such.
CFT_API size_t cft_stacks(char *buf, size_t capacity);

// cft_cpu_features returns the instruction sets that the CPU kernels use here ("avx512", "avx2+fma", "generic").
CFT_API const char *cft_cpu_features(void);

// cft_library_versions names the libraries underneath, one per line ("ggml 0.0.0 (v0.17.4)").
CFT_API const char *cft_library_versions(void);

// ---- model

typedef struct cft_model cft_model;

typedef struct cft_model_info {
    char     architecture[32];
    int32_t  n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx_train;
    int32_t  tied_output;     // 1 when the output head is the token embedding
    float    rope_freq_base, rms_eps;
    uint64_t weight_bytes;    // as stored
    uint64_t n_params;
    int32_t  n_expert, n_expert_used; // 0 without experts; n_ff is the width of one
    int32_t  window;          // positions that some or all layers look back over, a token's own included; 0: all
    int32_t  window_unserved; // 1 when llama.cpp computes the family without its window
} cft_model_info;

// cft_model_load maps the GGUF at path and checks every tensor that training needs: presence, shape, type, bounds.
// device is "cpu", a CUDA device ("cuda", "cuda:1", "CUDA1"), one of ggml's ("vulkan", "vulkan:1", "metal", "hip", or "ggml-" and the
// name of a ggml backend, such as "ggml-cpu"), or "auto": the first CUDA device that can train, else the CPU. Weights come to a device
// when a trainer is made.
CFT_API cft_status cft_model_load(const char *path, size_t path_len, const char *device, size_t device_len,
                                  cft_model **out, cft_error *err);
CFT_API void       cft_model_free(cft_model *model);
CFT_API cft_status cft_model_get_info(const cft_model *model, cft_model_info *out, cft_error *err);

// ---- trainer

typedef struct cft_trainer cft_trainer;

typedef enum cft_keep {
    CFT_KEEP_AUTO   = 0, // all if it fits memory_limit, else layers; on a CUDA device as much as fits
    CFT_KEEP_ALL    = 1, // keep every activation that the backward pass needs
    CFT_KEEP_LAYERS = 2, // keep layer inputs, recompute inside the layer
} cft_keep;

typedef struct cft_trainer_params {
    int32_t  rank;            // r >= 1
    float    alpha;           // scale is alpha / r, or alpha / sqrt(r) with rslora
    int32_t  rslora;          // 0 or 1
    float    dropout;         // in [0, 1), on the adapter's input
    uint32_t targets;         // CFT_TARGET_*
    uint64_t seed;            // of A's initial values and of dropout
    int32_t  keep_activations;// cft_keep
    uint64_t memory_limit;    // bytes for all buffers of the trainer (on a device: weights too); 0 = what the machine or device has free
    int32_t  max_tokens;      // longest pack that accumulate will be given
    int32_t  max_targets;     // most targets of a pack; 0 = max_tokens
    int32_t  n_threads;       // 0 = all processors that this process may use
    float    beta1, beta2, eps, weight_decay; // AdamW
    int32_t  dora;            // 0 or 1: every row of W + scale B A is scaled to a trained length (Liu et al. 2024). Not with
                              // dropout, nor on TOKEN_EMBD and OUTPUT
    float    lora_plus_ratio; // learning rate of B (and of DoRA's magnitudes) over that of A (Hayou et al. 2024); 0 is 1.
                              // TOKEN_EMBD's A and B have the rate of A
    int32_t  max_sequence;    // tokens of the longest sequence in a pack; 0 = max_tokens. Of models with rotary factors for short
                              // and for long contexts it decides which ones all sequences get
} cft_trainer_params;

// cft_module sets one module of one layer apart from rank and alpha of cft_trainer_params.
typedef struct cft_module {
    int32_t  layer;           // -1 for TOKEN_EMBD and OUTPUT
    uint32_t target;          // one CFT_TARGET_ bit, among those of the parameters
    int32_t  rank;            // 0: it gets no adapter
    float    alpha;
} cft_module;

typedef struct cft_memory_estimate {
    uint64_t weights;         // mapped from the file; on a device, what they take there
    uint64_t adapter;         // A and B
    uint64_t gradients;
    uint64_t moments;
    uint64_t activations;     // kept between forward and backward
    uint64_t workspace;       // one layer's forward and backward, attention, dequantized tiles
    uint64_t loss;            // the logits chunk
    uint64_t total;           // all of the above
    int32_t  keep_activations;// what AUTO chose: CFT_KEEP_ALL, or CFT_KEEP_LAYERS if any product is computed again since it is not kept
    float    computed_again;  // on a CUDA device, how much of the products in the layers' forward pass, by FLOPs: 1 is all of them; DoRA's, which nothing saves, too
    uint64_t streamed;        // bytes of weights that stay in the host's memory and come to the device layer by layer for each use; else 0
    uint64_t offloaded;       // bytes of activations that wait in the host's memory between forward and backward; else 0
} cft_memory_estimate;

// cft_memory_estimate_get tells what a trainer with these parameters would take, without allocating it.
CFT_API cft_status cft_memory_estimate_get(const cft_model *model, const cft_trainer_params *params, const cft_module *modules,
                                           size_t n_modules, cft_memory_estimate *out, cft_error *err);

// cft_trainer_new makes an adapter with A ~ uniform(-1/sqrt(in), 1/sqrt(in)) (Kaiming-uniform with a = sqrt(5), as PEFT
// does) from the seed, B = 0, and zero moments; that of TOKEN_EMBD has A = 0 and B ~ normal(0, 1), as PEFT's. Magnitudes are the
// lengths of W's rows. modules may be NULL where n_modules is 0. The model must outlive the trainer.
CFT_API cft_status cft_trainer_new(const cft_model *model, const cft_trainer_params *params, const cft_module *modules,
                                   size_t n_modules, cft_trainer **out, cft_error *err);
CFT_API void       cft_trainer_free(cft_trainer *trainer);
CFT_API cft_status cft_trainer_get_memory(const cft_trainer *trainer, cft_memory_estimate *out, cft_error *err);

// cft_trainer_remark writes, as text with a final NUL and cut where it is longer, what a user should know of how the trainer's device does
// its work, such as what makes it slower than it could be; "" where there is nothing to say.
CFT_API void cft_trainer_remark(const cft_trainer *trainer, char *buf, size_t capacity);

// cft_trainer_accumulate runs forward and backward on one pack and adds the gradient of
//     loss_sum = sum over positions i with a target of weights[i] * -log P(targets[i] | tokens up to i that i sees).
// All arrays have n_tokens elements; weights may be NULL (all 1). Position i sees key j when
// j <= i and i < visible_until[j] and, in layers with a window, positions[i] - positions[j] < window; positions are rotary
// positions (depths), not indices. Where a model has one set of rotary factors for long contexts and one for short ones,
// max_tokens decides, as the context's size does in llama.cpp.
// A non-finite loss returns CFT_ERR_NON_FINITE. After any failure the accumulated gradient is as it was before the
// call or must be thrown away: call cft_trainer_discard.
CFT_API cft_status cft_trainer_accumulate(cft_trainer *trainer, const int32_t *tokens, const int32_t *targets,
                                          const int32_t *positions, const int32_t *visible_until,
                                          const float *weights, size_t n_tokens,
                                          double *loss_sum, size_t *n_targets, cft_error *err);

// cft_trainer_apply divides the accumulated gradient by normalizer (the number of targets of the accumulation group),
// clips it to the global L2 norm max_grad_norm (0 = no clipping; factor max_grad_norm / (norm + 1e-6) as torch does),
// takes one AdamW step and clears the gradient. grad_norm gets the norm before clipping.
// A non-finite gradient returns CFT_ERR_NON_FINITE and leaves weights, moments and step as they were.
CFT_API cft_status cft_trainer_apply(cft_trainer *trainer, float lr, float max_grad_norm, double normalizer,
                                     double *grad_norm, cft_error *err);

// cft_trainer_discard clears the accumulated gradient.
CFT_API void cft_trainer_discard(cft_trainer *trainer);

// cft_trainer_cancel makes the running or the next accumulate or evaluate return CFT_ERR_CANCELLED soon.
CFT_API void cft_trainer_cancel(cft_trainer *trainer);

// cft_trainer_evaluate is the forward half of accumulate, without dropout; gradients stay as they are.
CFT_API cft_status cft_trainer_evaluate(cft_trainer *trainer, const int32_t *tokens, const int32_t *targets,
                                        const int32_t *positions, const int32_t *visible_until,
                                        const float *weights, size_t n_tokens,
                                        double *loss_sum, size_t *n_targets, cft_error *err);

// cft_trainer_logits runs forward and writes the logits of the n_rows given positions: out is [n_rows][n_vocab].
CFT_API cft_status cft_trainer_logits(cft_trainer *trainer, const int32_t *tokens, const int32_t *positions,
                                      const int32_t *visible_until, size_t n_tokens,
                                      const int32_t *rows, size_t n_rows, float *out, cft_error *err);

// ---- the trainer's state, tensor by tensor

typedef enum cft_slot {
    CFT_SLOT_VALUE    = 0,
    CFT_SLOT_GRADIENT = 1, // sum since the last apply or discard, not divided
    CFT_SLOT_MOMENT1  = 2,
    CFT_SLOT_MOMENT2  = 3,
} cft_slot;

typedef struct cft_tensor_info {
    char     name[96];        // "blk.0.attn_q.weight.lora_a", as llama.cpp's adapters have it
    uint64_t rows, cols;      // A is [rank][in], B [out][rank], a magnitude (".lora_magnitude") [out][1]; TOKEN_EMBD's A is
                              // [n_vocab][rank], B [n_embd][rank]
} cft_tensor_info;

CFT_API size_t     cft_trainer_tensor_count(const cft_trainer *trainer);
CFT_API cft_status cft_trainer_tensor_info(const cft_trainer *trainer, size_t index, cft_tensor_info *out, cft_error *err);
// n is the number of floats and must be rows * cols.
CFT_API cft_status cft_trainer_tensor_read(const cft_trainer *trainer, size_t index, cft_slot slot, float *out, size_t n, cft_error *err);
CFT_API cft_status cft_trainer_tensor_write(cft_trainer *trainer, size_t index, cft_slot slot, const float *data, size_t n, cft_error *err);

// The two counters that resume needs beside the tensors: optimizer steps taken (bias correction) and micro-batches
// accumulated (the counter of the dropout generator).
CFT_API cft_status cft_trainer_get_counters(const cft_trainer *trainer, uint64_t *n_steps, uint64_t *n_micro_batches, cft_error *err);
CFT_API cft_status cft_trainer_set_counters(cft_trainer *trainer, uint64_t n_steps, uint64_t n_micro_batches, cft_error *err);

// ---- one call for benchmarks

// cft_bench_sgemm returns the best rate of m x k by k x n products seen in some repetitions, in FLOP per second.
CFT_API cft_status cft_bench_sgemm(int32_t m, int32_t n, int32_t k, int32_t n_threads, double *flops, cft_error *err);

#ifdef __cplusplus
}
#endif
#endif
