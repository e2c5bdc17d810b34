// Package engine is cftune's native engine as Go sees it: training of LoRA adapters over a GGUF's frozen weights, and
// vocabulary and generation through libllama. It is the only package that crosses to C.
//
// Handles (Model, Trainer, Vocab, Session) are closed once by Close, which may be called again; any other method then
// returns ErrClosed. Methods of one handle run one at a time: a second caller waits. Only Vocab serves several callers
// at once, and Trainer.Cancel may be called during a call. Slices are borrowed for the call only.
//
// Native code can end the process at any line (an assertion in ggml, a fault of a device), so what must survive belongs
// in files before the call. A model's file that is cut off while it is mapped is an error, on Linux: the library puts a handler of
// SIGBUS before Go's, and all later calls that read weights fail as well.
package engine

/*
#cgo CFLAGS: -I${SRCDIR}/../native/include
#cgo LDFLAGS: -L${SRCDIR}/../../build/native/lib -lcftune
#cgo !darwin LDFLAGS: -Wl,-rpath,$ORIGIN/../lib -Wl,-rpath,$ORIGIN/../native/lib
#cgo LDFLAGS: -Wl,-rpath,${SRCDIR}/../../build/native/lib
#cgo !darwin LDFLAGS: -Wl,-rpath-link,${SRCDIR}/../../build/native/lib
*/
import "C"
