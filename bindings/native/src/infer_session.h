// infer_session.h - what a session holds.
#pragma once

#include "cft_infer.h"
#include "infer_importance.h"

#include "llama.h"

#include <cstdint>
#include <memory>
#include <vector>

// The opaque handle of cft_infer.h.
struct cft_session {
    template <auto Free> struct closer {
        template <typename T> void operator()(T *p) const { Free(p); }
    };
    // Order matters: members go in reverse, so the context goes before the adapter and the model that it points into.
    // The model does not free the adapter, whatever llama.h says.
    std::unique_ptr<llama_model, closer<llama_model_free>>               model;
    std::unique_ptr<llama_adapter_lora, closer<llama_adapter_lora_free>> adapter;
    std::unique_ptr<cft::importance>                                     importance; // the context calls it
    std::unique_ptr<llama_context, closer<llama_free>>                   context;
    const llama_vocab                                                   *vocab       = nullptr;
    llama_memory_t                                                       memory      = nullptr;
    int32_t                                                              n_vocab     = 0;
    int32_t                                                              n_batch     = 0;
    int32_t                                                              n_sequences = 0;
    bool                                                                 embeddings  = false;
    std::vector<int8_t>                                                  wanted; // of the last decode; empty when it failed
};
