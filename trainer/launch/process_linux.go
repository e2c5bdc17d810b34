package launch

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// bootID names this boot of this machine; empty where it cannot be told.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// processBegan returns when a process began, in ticks since boot; empty if there is no such process, or only what is left
// of one.
func processBegan(pid int) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	// The name in parentheses may hold anything; the fields behind it are counted.
	_, rest, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), '(')+1:]), ")")
	fields := strings.Fields(rest)
	const state, began = 0, 19
	if !ok || len(fields) <= began || fields[state] == "Z" {
		return ""
	}
	return fields[began]
}
