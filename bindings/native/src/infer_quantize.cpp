// infer_quantize.cpp - copies of models in other types, by libllama's quantizer.
#include "cft_infer.h"
#include "failure.h"
#include "infer_file.h"
#include "library.h"

#include "llama.h"

#include <string>

using namespace cft;

cft_status cft_model_requantize(const char *from, size_t from_len, const char *to, size_t to_len, int32_t ftype, int32_t n_threads, cft_error *err) {
    return guard(err, [&] {
        const std::string  source(from, from_len), target(to, to_len);
        const gguf_outline outline = check_gguf_file(source);
        check_vocabulary(source, outline);
        check_model_keys(source, outline);
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.nthread                     = n_threads;
        params.ftype                       = llama_ftype(ftype);
        params.allow_requantize            = true;
        log_capture log;
        if (llama_model_quantize(source.c_str(), target.c_str(), &params) != 0) {
            throw failure(CFT_ERR_UNSUPPORTED, "write " + target + " from " + source + ": " + log.errors());
        }
    });
}
