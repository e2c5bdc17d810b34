//go:build !linux

package launch

import "syscall"

func parentDeath() *syscall.SysProcAttr { return nil }

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
