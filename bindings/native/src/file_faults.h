// file_faults.h - what becomes of a mapped file that is cut off, or whose disk fails, while it is read.
//
// Reading a page that the file no longer has raises SIGBUS, which would end the process. Instead the page is replaced by zeros and the loss is
// remembered: whatever is being computed goes on over zeros, and the call that it belongs to fails with the file's name. So do all later ones:
// what was lost does not come back.
#pragma once

#include "failure.h"

namespace cft {

// catch_file_faults puts the handler before that of the host program, once. Faults that are none of a file mapped to be read and shared,
// as weights are, go on to the host's.
void catch_file_faults();

// check_file_faults throws a failure of CFT_ERR_IO if a mapped file could not be read.
void check_file_faults();

// guard_files is guard for what reads mapped weights, here or in libllama. body calls check_file_faults before it hands anything out; where it
// fails otherwise, a lost page is why.
template <typename Body> cft_status guard_files(cft_error *err, Body &&body) noexcept {
    cft_status status = guard(err, [&] {
        catch_file_faults();
        check_file_faults();
        body();
    });
    if (status == CFT_OK) {
        return status;
    }
    const cft_status lost = guard(err, check_file_faults);
    return lost != CFT_OK ? lost : status;
}

} // namespace cft
