// vulkan-compat.hpp - what ggml-vulkan.cpp names and headers of Vulkan before 1.3.272 lack: VK_EXT_layer_settings, which it uses to
// set a validation layer up. Included before everything else (scripts/build-vulkan). A loader that does not know the structure skips
// it, so without the layer these are never read.
#pragma once

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
