package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"unsafe"
)

// FileType is what the weights of a GGUF are stored as. The numbers are llama.cpp's.
type FileType int

// FileTypeF32 stores all weights in single precision.
const FileTypeF32 FileType = 0

// Requantize writes a copy of the GGUF at from to the path to, with weights of another type. Values go by way of F32:
// what is lost already stays lost. importance (nil: none) says of some weights, by name, how much each column counts. After
// an error, half a file may be left.
func Requantize(from, to string, t FileType, importance map[string][]float32, threads int) error {
	const op = "model_requantize"
	if t < 0 || threads < 0 {
		return invalid(op, fmt.Sprintf("file type %d, %d threads", t, threads))
	}
	if err := Init(""); err != nil {
		return err
	}
	var (
		ce     C.cft_error
		names  []byte
		counts []C.size_t
		values []float32
	)
	for _, name := range slices.Sorted(maps.Keys(importance)) {
		if strings.IndexByte(name, 0) >= 0 {
			return invalid(op, fmt.Sprintf("weight %q", name))
		}
		names = append(append(names, name...), 0)
		counts = append(counts, C.size_t(len(importance[name])))
		values = append(values, importance[name]...)
	}
	source, nSource := chars(from)
	target, nTarget := chars(to)
	status := C.cft_model_requantize(source, nSource, target, nTarget, C.int32_t(t), C.int32_t(threads), (*C.char)(unsafe.Pointer(unsafe.SliceData(names))),
		C.size_t(len(counts)), unsafe.SliceData(counts), floats(values), &ce)
	runtime.KeepAlive(from)
	runtime.KeepAlive(to)
	return check(op, status, &ce)
}
