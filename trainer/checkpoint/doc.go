// Package checkpoint stores training state so that a run can resume after any crash, including power loss.
//
// A checkpoint is a folder that appears all at once and never changes, but for a manifest that learns of a
// later validation (Amend); a visible one has all of its files. One process
// at a time writes to a run, which a lock sees to; readers need none. The package does not interpret the files: it
// records their size and digest and verifies them. FORMAT.md beside the package describes everything in a run directory.
package checkpoint
