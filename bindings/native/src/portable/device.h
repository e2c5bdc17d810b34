// device.h - ggml's devices as places to train: by name, and behind the interface that libcftune-cuda has too.
#pragma once

#include "../device_trainer.h"

#include "ggml-backend.h"

#include <string>

namespace cft::portable {

// load_devices loads the ggml backends that lie in the folder `devices` beside libcftune, or in the one that
// CFT_DEVICE_LIBRARIES names, once: not with the program, since they search for hardware.
void load_devices();

// The ggml device that a name means: "vulkan", "vulkan:1", "Vulkan1", "metal", "hip", or of any backend "ggml-cpu", "ggml-sycl:0".
// NULL where the name is of no such form; throws CFT_ERR_DEVICE where there is no such device.
ggml_backend_dev_t find_device(const std::string &name, int *index);

const device_library *library();

} // namespace cft::portable
