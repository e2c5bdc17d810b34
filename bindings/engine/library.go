package engine

// #include "cft_infer.h"
import "C"

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"cftune/bindings/native"
)

var initialized struct {
	sync.Mutex
	done bool
}

// Init loads ggml's backends from dir (where libggml-cpu*.so lies); empty means the folder of libcftune.so itself. The
// first success counts, later calls do nothing. Load, OpenVocab, NewSession and Devices call it with an empty dir.
func Init(dir string) error {
	initialized.Lock()
	defer initialized.Unlock()
	if initialized.done {
		return nil
	}
	if err := sameHeaders(C.GoString(C.cft_headers())); err != nil {
		return err
	}
	var ce C.cft_error
	p, n := chars(dir)
	status := C.cft_init(p, n, &ce)
	runtime.KeepAlive(dir)
	if err := check("init", status, &ce); err != nil {
		return err
	}
	initialized.done = true
	return nil
}

// ErrHeaders says that the program and libcftune.so are of different versions of the interface.
var ErrHeaders = errors.New("engine: libcftune was built from other headers than this program, so that neither can read what the other writes")

// sameHeaders compares the headers that the library was built with with those of this program. Go's build cache knows the latter by the links
// in this folder: it looks at no header elsewhere, and would keep what was compiled with an old one.
func sameHeaders(library string) error {
	own, err := native.Headers()
	if err != nil {
		return err
	}
	if library != own {
		return ErrHeaders
	}
	return nil
}

// maxStacks bounds the text of Stacks, in bytes.
const maxStacks = 1 << 20

// Stacks tells where every thread of the process stands, the engine's among them. Threads that run Go code show no more
// than that they do.
func Stacks() string {
	buf := make([]byte, maxStacks)
	n := C.cft_stacks((*C.char)(unsafe.Pointer(&buf[0])), C.size_t(len(buf)))
	return string(buf[:n])
}

// Device is something that can compute: of ggml, or of libcftune-cuda.
type Device struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	MemoryTotal uint64 `json:"memory_total"` // bytes
	MemoryFree  uint64 `json:"memory_free"`  // bytes
	CanTrain    bool   `json:"can_train"`
	Portable    bool   `json:"portable"` // trains by ggml's ops alone
}

// CUDAState says how many CUDA devices there are, or why none can be used.
func CUDAState() string {
	var text [512]C.char
	C.cft_cuda_state(&text[0], C.size_t(len(text)))
	return fromChars(text[:])
}

// Devices lists the devices of all loaded backends.
func Devices() ([]Device, error) {
	if err := Init(""); err != nil {
		return nil, err
	}
	devices := make([]Device, 0, C.cft_device_count())
	for i := range cap(devices) {
		var (
			d  C.cft_device
			ce C.cft_error
		)
		if err := check("device_get", C.cft_device_get(C.size_t(i), &d, &ce), &ce); err != nil {
			return nil, err
		}
		devices = append(devices, Device{
			Name:        fromChars(d.name[:]),
			Description: fromChars(d.description[:]),
			MemoryTotal: uint64(d.memory_total),
			MemoryFree:  uint64(d.memory_free),
			CanTrain:    d.can_train != C.CFT_TRAINS_NOT,
			Portable:    d.can_train == C.CFT_TRAINS_PORTABLE,
		})
	}
	return devices, nil
}

// DrainLog returns the lines that native code has logged since the last call, oldest first.
func DrainLog() []string {
	var lines []string
	buf := make([]byte, 64*1024)
	for {
		n := C.cft_log_drain((*C.char)(unsafe.Pointer(unsafe.SliceData(buf))), C.size_t(len(buf)))
		if n == 0 {
			return lines
		}
		lines = append(lines, strings.Split(string(buf[:n]), "\n")...)
	}
}

// CPUFeatures names the instruction sets that the CPU kernels use here.
func CPUFeatures() string { return C.GoString(C.cft_cpu_features()) }

// LibraryVersions names the libraries underneath.
func LibraryVersions() []string { return strings.Split(C.GoString(C.cft_library_versions()), "\n") }

// BenchSGEMM returns the rate of products of an m x k by a k x n matrix in FLOP per second, the best of some
// repetitions. threads 0 means all that the process may use.
func BenchSGEMM(m, n, k, threads int) (float64, error) {
	var (
		flops C.double
		ce    C.cft_error
	)
	status := C.cft_bench_sgemm(C.int32_t(m), C.int32_t(n), C.int32_t(k), C.int32_t(threads), &flops, &ce)
	return float64(flops), check("bench_sgemm", status, &ce)
}
