//go:build linux || darwin

package regular

import (
	"io/fs"
	"syscall"
	"time"
)

// Changed is when a file's content, name or mode was changed last, by the system's clock. Unlike its time of modification, which tools that copy
// files give to other contents, it cannot be set.
func Changed(info fs.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		at := changed(s)
		return time.Unix(at.Unix())
	}
	return info.ModTime()
}
