//go:build !linux && !darwin

package regular

import (
	"io/fs"
	"time"
)

// Changed: other systems do not tell more than the time of modification.
func Changed(info fs.FileInfo) time.Time { return info.ModTime() }
