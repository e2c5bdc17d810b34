//go:build !linux

package durable

import "os"

// reserve: other systems allocate only with a file's end, or not at all.
func reserve(*os.File, int64, int64) error { return nil }
