// Package testmodel is cftune/internal/testmodel for the tests below trainer.
package testmodel

import "cftune/internal/testmodel"

// Options describe a model.
type Options = testmodel.Options

// The types of matrices.
const (
	F32  = testmodel.F32
	F16  = testmodel.F16
	Q4_0 = testmodel.Q4_0
	Q4_1 = testmodel.Q4_1
	Q8_0 = testmodel.Q8_0
)

// Write writes a model to path.
func Write(path string, o Options) error { return testmodel.Write(path, o) }
