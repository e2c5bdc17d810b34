// infer_quantize.cpp - copies of models in other types, by libllama's quantizer.
#include "cft_infer.h"
#include "failure.h"
#include "file_faults.h"
#include "infer_file.h"
#include "library.h"

#include "gguf.h"
#include "llama.h"

#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

using namespace cft;

cft_status cft_model_requantize(const char *from, size_t from_len, const char *to, size_t to_len, int32_t ftype, int32_t n_threads,
                                const char *names, size_t n_importance, const size_t *counts, const float *values, cft_error *err) {
    return guard_files(err, [&] {
        const std::string  source(from, from_len), target(to, to_len);
        const gguf_outline outline = check_gguf_file(source);
        check_vocabulary(source, outline);
        check_model_keys(source, outline);
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.nthread                     = n_threads;
        params.ftype                       = llama_ftype(ftype);
        params.allow_requantize            = true;
        std::unordered_map<std::string, std::vector<float>> importance; // what libllama casts its pointer to
        for (size_t i = 0; i < n_importance; i++) {
            importance.emplace(names, std::vector<float>(values, values + counts[i]));
            names += std::strlen(names) + 1;
            values += counts[i];
        }
        params.imatrix = n_importance > 0 ? &importance : nullptr;
        // libllama pads tensors to the default alignment, whatever the file's is, and would still state that.
        std::vector<llama_model_kv_override> changed;
        if (const auto stated = outline.values.find("general.alignment"); stated != outline.values.end() && stated->second.number != GGUF_DEFAULT_ALIGNMENT) {
            changed.resize(2); // the second, without a key, ends the list
            changed[0].tag     = LLAMA_KV_OVERRIDE_TYPE_INT;
            changed[0].val_i64 = GGUF_DEFAULT_ALIGNMENT;
            std::strcpy(changed[0].key, "general.alignment");
            params.kv_overrides = &changed;
        }
        log_capture log;
        if (llama_model_quantize(source.c_str(), target.c_str(), &params) != 0) {
            throw failure(CFT_ERR_UNSUPPORTED, "write " + target + " from " + source + ": " + log.errors());
        }
        check_file_faults();
    });
}
