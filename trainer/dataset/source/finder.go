package source

// finder finds files. Tests have their own.
type finder struct {
	stdin place
}

var defaultFinder = &finder{stdin: standardInput}
