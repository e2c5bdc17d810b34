// Package config reads a run's configuration: defaults, a YAML file, the environment and --set, in rising order of
// precedence, strictly.
//
// Unknown keys are errors, so that a misspelt key never trains at a default; all problems are reported at once, each
// with its key. The package opens no file but the configuration itself.
package config
