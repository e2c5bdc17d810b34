// device_trainer.h - training on a device of its own memory: what cft_trainer asks of a library that is loaded when such a device
// is wanted (libcftune-cuda), and of the portable path (portable/). Library and engine are built from the same sources, and check
// that they were.
#pragma once

#include "adapter.h"
#include "ops.h"

#include <atomic>
#include <string>
#include <vector>

namespace cft {

// device_pack is one pack on its way: the first t tokens, and the positions whose logits are wanted.
struct device_pack {
    const int32_t              *tokens, *positions, *visible_until; // [t]; visible_until at most t
    int64_t                     t;
    const std::vector<int32_t> &rows;    // ascending; the last is t - 1
    const std::vector<int32_t> &targets; // of those; empty for logits
    const std::vector<float>   &weights; // of those
    dropout                     drop;    // without the layer
};

// device_trainer holds weights, adapter, gradient and moments of one trainer on its device. Calls return when the device is
// done with them.
class device_trainer {
  public:
    virtual ~device_trainer() = default;

    // The weighted sum of losses; with backward, gradients are added. Throws CFT_ERR_CANCELLED soon after `cancelled` is set.
    virtual double run(const device_pack &pack, bool backward, std::atomic<bool> &cancelled) = 0;
    virtual void   logits(const device_pack &pack, float *out, std::atomic<bool> &cancelled) = 0;

    virtual double sum_of_squares() = 0; // of the accumulated gradient
    virtual void   adamw(const adamw_step &step) = 0;
    virtual void   discard() = 0; // clears the gradient

    // One tensor of the adapter, as the host lays it out: A [rank][in], B [out][rank], magnitudes [out].
    virtual void read(int layer, int module, adapter_tensor kind, cft_slot slot, float *out) = 0;
    virtual void write(int layer, int module, adapter_tensor kind, cft_slot slot, const float *data) = 0;

    // What a user should know of how it does its work, or "".
    virtual std::string remark() const { return ""; }

    // With DoRA, before the first pack: the lengths of the base weight's rows, for a device that does not compute them itself.
    virtual void write_weight_norms(int, int, const float *) {}
};

// loss_tiles is how many rows of logits, and of the output head, there are at a time; 0: what the device takes of itself. Tests
// have small models go through loss and head in several tiles by it.
struct loss_tiles {
    int64_t rows = 0, head_rows = 0;
};

// trainer_setup is what a trainer is made with beside what a user asks for.
struct trainer_setup {
    loss_tiles tiles;
    uint64_t   lockable = 0; // bytes of the host's memory that may be locked, where weights stay there
};

// device_library is what the library's symbol cft_device_library returns. Before it is called, cft_device_digest tells whether the library
// was built from the same headers (scripts/native-digest): with others, all that both sides know of each other may be wrong.
struct device_library {
    int (*count)();
    void (*describe)(int device, cft_device *out);
    // What a trainer takes. With must_fit, what does not fit the device throws CFT_ERR_NO_MEMORY and says what would.
    cft_memory_estimate (*estimate)(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int device, bool must_fit,
                                    loss_tiles tiles);
    device_trainer *(*make)(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int device, const trainer_setup &setup);
};

// device_choice is where a model is trained: on the CPU where library is NULL.
struct device_choice {
    const device_library *library = nullptr;
    int                   index   = 0;
};

// "auto" is the first CUDA device if there is one that can train, else the CPU; "cpu" the CPU; "cuda", "cuda:1" and "CUDA1" a CUDA
// device; for ggml's devices see portable/device.h. Throws CFT_ERR_DEVICE in words.
device_choice choose_device(const std::string &name);

// The library, or NULL with the reason.
const device_library *cuda_library(std::string &reason);

} // namespace cft

extern "C" typedef const cft::device_library *cft_device_library_function();
extern "C" typedef const char *cft_device_digest_function();
