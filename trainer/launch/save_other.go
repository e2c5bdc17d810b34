//go:build !unix

package launch

import "syscall"

// SaveSignal asks the program to save and end.
const SaveSignal = syscall.SIGTERM
