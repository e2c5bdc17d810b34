// gate.h - the gates of feed-forward halves and their derivatives. Included by .cu files only.
#pragma once

#include "device.h"

namespace cft::cuda {

// gelu(g) = g sigmoid(2u), u = slope (g + cube g³): its tanh form.
constexpr float gelu_slope = 0.79788456080286535588f, gelu_cube = 0.044715f;

// The gate's sigmoid s, act = g s, and the derivative of act.
__device__ __forceinline__ void gate_of(bool gelu, float g, float &act, float &slope) {
    const float u = gelu ? 2.0f * gelu_slope * g * (1.0f + gelu_cube * g * g) : g;
    const float s = 1.0f / (1.0f + expf(-u)), du = gelu ? 2.0f * gelu_slope * (1.0f + 3.0f * gelu_cube * g * g) : 1.0f;
    act   = g * s;
    slope = s * (1.0f + g * (1.0f - s) * du);
}

} // namespace cft::cuda
