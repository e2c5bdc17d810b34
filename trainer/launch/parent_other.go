//go:build !linux

package launch

import "syscall"

func parentDeath() *syscall.SysProcAttr { return nil }

func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
