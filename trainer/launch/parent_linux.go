package launch

import "syscall"

// parentDeath makes the kernel end the program, with a checkpoint, when its supervisor is killed: a run without one would go
// on unknown.
func parentDeath() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}

// ownGroup does that for a launcher of several processes, and keeps a terminal's Ctrl-C from it.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: SaveSignal, Setpgid: true}
}

// detached makes a process that a closing connection does not end.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
