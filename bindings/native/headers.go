// Package native has the headers of the native engine as they are when the program is built.
package native

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"strings"
)

//go:embed include/*.h
var headers embed.FS

// Headers is the digest of the digests of the headers, in the order of their names: what CMakeLists.txt compiles into the library.
func Headers() (string, error) {
	names, err := fs.Glob(headers, "include/*.h") // sorted
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, name := range names {
		text, err := headers.ReadFile(name)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(text)
		all.WriteString(hex.EncodeToString(sum[:]))
	}
	sum := sha256.Sum256([]byte(all.String()))
	return hex.EncodeToString(sum[:]), nil
}
