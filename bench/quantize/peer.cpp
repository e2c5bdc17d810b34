// peer.cpp - quantizes a GGUF by calling libllama and nothing else, as llama.cpp's own tool does: what `cftune quantize` is compared with.
// With SYNC 1 it waits until the file is on the disk, as cftune does before it gives a file its name.
#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 7) {
        std::fprintf(stderr, "usage: peer FROM TO FTYPE THREADS BACKENDS SYNC\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all_from_path(argv[5]);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = llama_ftype(std::atoi(argv[3]));
    params.nthread                     = std::atoi(argv[4]);
    params.allow_requantize            = true;
    if (llama_model_quantize(argv[1], argv[2], &params) != 0) {
        return 1;
    }
    if (std::atoi(argv[6]) == 0) {
        return 0;
    }
    const int file = open(argv[2], O_RDONLY);
    return file >= 0 && fsync(file) == 0 ? 0 : 1;
}
