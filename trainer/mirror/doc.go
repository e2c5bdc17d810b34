// Package mirror keeps copies of a run's checkpoints in an object store or another folder, and brings them back.
//
// A mirrored checkpoint is a folder of objects from which the run goes on, bit for bit, on a machine that has nothing of
// it: the checkpoint's own files, and configuration, metrics and journal as they were when it was written. The object
// mirror.json is put there last, after every other one was read back whole; a checkpoint without it, or one whose objects
// are not what it says, is none. trainer/checkpoint/FORMAT.md describes the layout.
//
// A Worker copies in the background and never makes the run wait: while one checkpoint is under way only the newest of
// those that follow is kept in mind. Nothing that happens to the store is the run's failure; it is counted and told.
//
// What is read from a store is believed no further than digests and limits go.
package mirror
