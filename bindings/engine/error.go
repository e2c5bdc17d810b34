package engine

// #include "cft_infer.h"
import "C"

import (
	"errors"
	"strings"
	"unsafe"
)

// What an Error is about; for errors.Is.
var (
	ErrInvalidArgument = errors.New("invalid argument")
	ErrIO              = errors.New("file cannot be read")
	ErrFormat          = errors.New("file is damaged or of another kind")
	ErrUnsupported     = errors.New("not supported")
	ErrNoMemory        = errors.New("not enough memory")
	ErrDevice          = errors.New("device or backend failed")
	ErrNonFinite       = errors.New("not finite")
	ErrCancelled       = errors.New("cancelled")
	ErrInternal        = errors.New("internal error")
)

// ErrClosed is returned by the methods of a handle after Close.
var ErrClosed = errors.New("engine: closed")

// Status is the native library's reason for a failure, as numbered in cft.h.
type Status int

var statusErrors = map[Status]error{
	C.CFT_ERR_INVALID_ARGUMENT: ErrInvalidArgument,
	C.CFT_ERR_IO:               ErrIO,
	C.CFT_ERR_FORMAT:           ErrFormat,
	C.CFT_ERR_UNSUPPORTED:      ErrUnsupported,
	C.CFT_ERR_NO_MEMORY:        ErrNoMemory,
	C.CFT_ERR_DEVICE:           ErrDevice,
	C.CFT_ERR_NON_FINITE:       ErrNonFinite,
	C.CFT_ERR_CANCELLED:        ErrCancelled,
	C.CFT_ERR_INTERNAL:         ErrInternal,
}

// Error is a failure in native code: the operation, and the native words whole. errors.Is matches it with the sentinel
// of its status.
type Error struct {
	Op, Msg string
	Status  Status
}

func (e *Error) Error() string { return "engine: " + e.Op + ": " + e.Msg }

// Is reports whether target is the sentinel of e's status.
func (e *Error) Is(target error) bool { return statusErrors[e.Status] == target }

// invalid is a refusal on this side of the door.
func invalid(op, msg string) error {
	return &Error{Op: op, Msg: msg, Status: C.CFT_ERR_INVALID_ARGUMENT}
}

func check(op string, status C.cft_status, ce *C.cft_error) error {
	if status == C.CFT_OK {
		return nil
	}
	return &Error{Op: op, Msg: fromChars(ce.message[:]), Status: Status(status)}
}

// chars returns pointer and length of a string for the time of a call: no copy, nothing to free. The caller keeps the
// string alive until the call is over.
func chars(s string) (*C.char, C.size_t) {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s))
}

// fromChars copies a zero-terminated string out of a fixed array. A message that was cut inside a character loses its rest.
func fromChars(c []C.char) string {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(c))), len(c))
	text, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(text, "")
}

func int32s(s []int32) *C.int32_t { return (*C.int32_t)(unsafe.Pointer(unsafe.SliceData(s))) }
func floats(s []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(s))) }

func flag(b bool) C.int32_t {
	if b {
		return 1
	}
	return 0
}
