// journey.h - one pack on its way through a portable engine.
#pragma once

#include "engine.h"

namespace cft::portable {

struct engine::journey {
    int64_t              t, n; // tokens, target rows
    std::vector<int32_t> tokens;
    pack_tiles           tiles;
    std::vector<int32_t> targets;
    std::vector<float>   weights;
    dropout              drop; // without the layer
};

} // namespace cft::portable
