//go:build !linux

package launch

import "errors"

// Outlast is for pods.
func Outlast([]string, <-chan struct{}) (int, error) {
	return 0, errors.New("pods run Linux, this is another system")
}
