// vulkan-compat.hpp - what ggml-vulkan.cpp names and headers of Vulkan before 1.3.272 lack: VK_EXT_layer_settings, which it uses to
// set a validation layer up. Included before everything else (scripts/build-vulkan). A loader that does not know the structure skips
// it, so without the layer these are never read.
//
// And write_whole_set, which scripts/build-vulkan puts where ggml-vulkan.cpp writes a descriptor set.
#pragma once

#include <array>
#include <type_traits>

#include <vulkan/vulkan_core.h> // not vulkan.hpp, which ggml-vulkan.cpp includes its own way

#ifndef VK_EXT_layer_settings
#include <cstdint>
#include <vector>

namespace vk {

enum class LayerSettingTypeEXT : uint32_t { eBool32 = 0 };

struct LayerSettingEXT {
    const char         *layer, *setting;
    LayerSettingTypeEXT type;
    uint32_t            count;
    const void         *values;
};

// The extension's own layout: VkLayerSettingsCreateInfoEXT.
struct LayerSettingsCreateInfoEXT {
    uint32_t               structure_type = 1000496000;
    const void            *next           = nullptr;
    uint32_t               count;
    const LayerSettingEXT *settings;

    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> &all) : count(uint32_t(all.size())), settings(all.data()) {}
};

} // namespace vk
#endif

// Writes a set's every binding: those that the pipeline has, and its first buffer to the others. ggml-vulkan.cpp writes a pipeline's own
// bindings to sets that other pipelines used before, and so leaves theirs in the rest, of buffers that may be gone by now. Vulkan allows
// that: only the bindings that a shader uses have to be valid (VUID-vkCmdDispatch-None-08114). lavapipe of Mesa 22.3.6 binds them all
// the same, and counts a reference in freed memory.
template <unsigned n_bindings, class device, class write> void write_whole_set(device &d, write set) {
    std::array<std::decay_t<decltype(*set.pBufferInfo)>, n_bindings> buffers;
    for (unsigned i = 0; i < n_bindings; i++) {
        buffers[i] = set.pBufferInfo[i < set.descriptorCount ? i : 0];
    }
    set.descriptorCount = n_bindings;
    set.pBufferInfo     = buffers.data();
    d.updateDescriptorSets({set}, {});
}
