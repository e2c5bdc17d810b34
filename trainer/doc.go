// Package trainer runs a training run: it reads records in order, lays them out, packs them, has the engine accumulate
// and step, and keeps metrics and checkpoints.
//
// What is promised:
//   - All problems of the data are found before the model trains, and reported together.
//   - Which examples a step has depends on the configuration and the data alone, so a resumed run goes on exactly as an
//     unbroken one would have: cursor, counters, adapter and moments come from the checkpoint.
//   - An interrupted step is thrown away whole; the step before it is on disk when Run returns.
//   - A loss that is not finite ends the run and leaves the checkpoints as they were.
//
// The package knows the engine as an interface only. It has no flags, takes no signals, and ends no process.
package trainer
