package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// childrenOf are the processes that a process has started, as Linux tells.
func childrenOf(t *testing.T, parent int) []int {
	t.Helper()
	var pids []int
	eachProcess(t, func(pid int, dir string) {
		text, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	})
	return pids
}

// eachProcess visits all processes, each with its folder in /proc.
func eachProcess(t *testing.T, visit func(pid int, dir string)) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			visit(pid, filepath.Join("/proc", e.Name()))
		}
	}
}
