package config

import (
	"errors"
	"fmt"
)

// Relocation gives the paths of a configuration other places, and keeps what goes wrong, so that all of it is told at once.
type Relocation struct {
	Place    func(key, path string) (string, error)
	problems []error
}

// Move puts a key's path in its new place; an empty one is none.
func (r *Relocation) Move(key string, path *string) {
	if *path == "" {
		return
	}
	to, err := r.Place(key, *path)
	if err != nil {
		r.problems = append(r.problems, fmt.Errorf("%s: %w", key, err))
		return
	}
	*path = to
}

// Err has a line for each path that has no place.
func (r *Relocation) Err() error { return errors.Join(r.problems...) }
