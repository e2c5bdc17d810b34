// failure.h - how native code reports trouble inside the library: throw failure; guard turns it into a status at the door.
#pragma once

#include "cft.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace cft {

struct failure : std::runtime_error {
    cft_status status;
    failure(cft_status s, const std::string &message) : std::runtime_error(message), status(s) {}
};

// guard runs body and turns whatever it throws into a status and a message in the caller's buffer.
template <typename Body> cft_status guard(cft_error *err, Body &&body) noexcept {
    auto report = [err](cft_status status, const char *message) {
        if (err) {
            std::snprintf(err->message, sizeof err->message, "%s", message);
        }
        return status;
    };
    try {
        body();
        return CFT_OK;
    } catch (const failure &f) {
        return report(f.status, f.what());
    } catch (const std::bad_alloc &) {
        return report(CFT_ERR_NO_MEMORY, "out of memory");
    } catch (const std::exception &e) {
        return report(CFT_ERR_INTERNAL, e.what());
    } catch (...) {
        return report(CFT_ERR_INTERNAL, "unknown native exception");
    }
}

} // namespace cft
