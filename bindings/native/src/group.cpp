// group.cpp - the door to libcftune-mpi, which is loaded when a process joins a group.
#include "cft_group.h"

#include "failure.h"
#include "group.h"
#include "library.h"
#include "processors.h"

#include <cstdlib>
#include <dlfcn.h>

struct cft_group {
    const cft::group_functions *mpi;
    int                         size;
};

namespace cft {
namespace {


const group_functions *load_mpi() {
    Dl_info     info;
    std::string name = std::string("libcftune-mpi") + library_ending, path = name;
    if (dladdr(reinterpret_cast<const void *>(&cft_group_join), &info) && info.dli_fname) {
        const std::string here = info.dli_fname;
        if (const size_t slash = here.rfind('/'); slash != std::string::npos) {
            path = here.substr(0, slash + 1) + name;
        }
    }
    // Open MPI opens modules of its own, which look for its symbols among the global ones.
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        throw failure(CFT_ERR_DEVICE, std::string("no MPI: ") + dlerror() + " (it is built where MPI is installed: libopenmpi-dev or libmpich-dev)");
    }
    const void *functions = dlsym(library, group_symbol);
    if (!functions) {
        throw failure(CFT_ERR_DEVICE, path + " is of another version: it has no " + group_symbol);
    }
    return static_cast<const group_functions *>(functions);
}

template <typename Call> void call(Call &&f) {
    char why[CFT_ERROR_SIZE] = "";
    if (f(why, sizeof why)) {
        throw failure(CFT_ERR_DEVICE, why);
    }
}

void check_group(const cft_group *group) {
    if (!group) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "group is NULL");
    }
}

} // namespace
} // namespace cft

using cft::guard;

cft_status cft_group_join(cft_group **out, int32_t *rank, int32_t *size, cft_error *err) {
    return guard(err, [&] {
        const cft::group_functions *mpi = cft::load_mpi();
        int                         r = 0, n = 0, sharing = 1;
        cft::call([&](char *why, size_t n_why) { return mpi->join(&r, &n, &sharing, why, n_why); });
        cft::share_processors(sharing);
        *out  = new cft_group{mpi, n};
        *rank = r;
        *size = n;
    });
}

cft_status cft_group_leave(cft_group *group, cft_error *err) {
    return guard(err, [&] {
        if (!group) {
            return;
        }
        const cft::group_functions *mpi = group->mpi;
        delete group;
        cft::call([&](char *why, size_t n_why) { return mpi->leave(why, n_why); });
    });
}

void cft_group_abort(cft_group *group, int32_t exit_code) {
    if (group) {
        group->mpi->abort(exit_code);
    }
    std::_Exit(exit_code);
}

cft_status cft_group_broadcast(cft_group *group, void *data, size_t n, cft_error *err) {
    return guard(err, [&] {
        cft::check_group(group);
        cft::call([&](char *why, size_t n_why) { return group->mpi->broadcast(data, n, why, n_why); });
    });
}

cft_status cft_group_gather(cft_group *group, const void *mine, size_t n, void *all, cft_error *err) {
    return guard(err, [&] {
        cft::check_group(group);
        cft::call([&](char *why, size_t n_why) { return group->mpi->gather(mine, n, all, why, n_why); });
    });
}

cft_status cft_group_sum(cft_group *group, float *data, size_t n, cft_error *err) {
    return guard(err, [&] {
        cft::check_group(group);
        cft::call([&](char *why, size_t n_why) { return group->mpi->sum(data, n, why, n_why); });
    });
}
