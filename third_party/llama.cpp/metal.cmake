# ggml's backend for Apple's GPUs, lib/devices/libggml-metal.so: lib/devices since it is loaded when a device is asked for. Not by
# ggml's own CMake file: two things in its sources are changed first.
#
# Its product of F32 matrices rounds both operands to halves: gradients would be right to three digits, those below 6e-8 gone.
# Here F32 stays F32, and the kernel gets the memory that its tiles then take. Where a version's text is another, nothing is changed,
# and training on such a device is refused when a trainer is made (bindings/native/src/portable/products.cpp).
enable_language(ASM)
set(metal ${GGML_DIR}/src/ggml-metal)
set(patched ${CMAKE_BINARY_DIR}/patched-metal)
set(metal_changes 0)

# change replaces what a regular expression finds in the variable's text, and counts.
function(change variable from to)
    string(REGEX REPLACE "${from}" "${to}" text "${${variable}}")
    if(NOT text STREQUAL "${${variable}}")
        math(EXPR n "${metal_changes} + 1")
        set(metal_changes ${n} PARENT_SCOPE)
        set(${variable} "${text}" PARENT_SCOPE)
    endif()
endfunction()

file(READ ${metal}/ggml-metal.metal shaders)
file(READ ${metal}/ggml-metal-device.cpp pipelines)
set(half "half, *half4x4, *simdgroup_half8x8, *half, *half2x4, *simdgroup_half8x8,")
change(shaders "(kernel_mul_mm_f32_f32\"[^<]*<)${half}" "\\1float, float4x4, simdgroup_float8x8, float, float2x4, simdgroup_float8x8,")
change(shaders "shmem \\+ 4096\\)" "shmem + 64*32*sizeof(S0))")
change(pipelines "res\\.smem = bc_out \\? 8192 : 4096 \\+ 2048"
    "res.smem = tsrc0 == GGML_TYPE_F32 && tsrc1 == GGML_TYPE_F32 ? 8192 + 4096 : bc_out ? 8192 : 4096 + 2048")
if(NOT metal_changes EQUAL 3)
    message(WARNING "ggml-metal's product of F32 matrices looks different in this version (${metal_changes} of 3 places found): left as it is")
    file(READ ${metal}/ggml-metal.metal shaders)
    file(READ ${metal}/ggml-metal-device.cpp pipelines)
endif()

# The library carries its shaders as one text, and Apple's compiler makes code of it when the device is opened.
file(READ ${GGML_DIR}/src/ggml-common.h common)
file(READ ${metal}/ggml-metal-impl.h parameters)
string(REPLACE "__embed_ggml-common.h__" "${common}" shaders "${shaders}")
string(REPLACE "#include \"ggml-metal-impl.h\"" "${parameters}" shaders "${shaders}")
foreach(part "block_q4_K" "ggml_metal_kargs_mul_mm;") # of the one and of the other
    string(FIND "${shaders}" "${part}" at)
    if(at EQUAL -1)
        message(FATAL_ERROR "ggml-metal.metal does not take its headers as this file expects: ${part} is missing")
    endif()
endforeach()
file(WRITE ${patched}/ggml-metal-embed.metal "${shaders}")
file(WRITE ${patched}/ggml-metal-device.cpp "${pipelines}")
file(WRITE ${patched}/ggml-metal-embed.s ".section __DATA,__ggml_metallib
.globl _ggml_metallib_start
_ggml_metallib_start:
.incbin \"${patched}/ggml-metal-embed.metal\"
.globl _ggml_metallib_end
_ggml_metallib_end:
")
set_source_files_properties(${patched}/ggml-metal-embed.s PROPERTIES OBJECT_DEPENDS ${patched}/ggml-metal-embed.metal)

file(GLOB metal_sources ${metal}/*.cpp ${metal}/*.m)
list(REMOVE_ITEM metal_sources ${metal}/ggml-metal-device.cpp)
if(CFT_METAL_WITHOUT_SDK) # scripts/check-macos: all but what needs Apple's headers, compiled and not linked
    list(FILTER metal_sources EXCLUDE REGEX "\\.m$")
    add_library(ggml-metal OBJECT ${metal_sources} ${patched}/ggml-metal-device.cpp ${patched}/ggml-metal-embed.s)
    add_dependencies(ggml ggml-metal)
else()
    add_library(ggml-metal MODULE ${metal_sources} ${patched}/ggml-metal-device.cpp ${patched}/ggml-metal-embed.s)
    target_link_libraries(ggml-metal PRIVATE "-framework Foundation" "-framework Metal" "-framework MetalKit")
    set_target_properties(ggml-metal PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/devices INSTALL_RPATH "@loader_path/..")
endif()
target_compile_definitions(ggml-metal PRIVATE GGML_METAL_EMBED_LIBRARY GGML_BACKEND_DL GGML_BACKEND_BUILD GGML_BACKEND_SHARED)
target_include_directories(ggml-metal PRIVATE ${metal} ${GGML_DIR}/src)
target_link_libraries(ggml-metal PRIVATE ggml-base)
