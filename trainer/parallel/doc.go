// Package parallel trains one adapter on several processes that have the whole model each (data parallelism).
//
// Rank 0 runs the training loop as if it were alone: it reads the data, decides everything and writes everything. Its
// engine hands the packs of a step out, pack i to rank i modulo the number of processes; each computes its share; the
// gradients are added up in a fixed order, and every rank takes the same optimizer step. So the order of the data does not
// depend on how many there are, a run may go on with more or fewer, and the same number gives the same bits.
//
// The other ranks do what they are told (Serve). Whoever fails in a way that the loop cannot answer ends the group.
//
// What a step costs beside computing: a pack's tokens to everybody (20 bytes a token), and the sum of the gradient, for which each
// of P ranks sends and receives 2 (P-1)/P times the adapter's size. docs/parallel.md has the formula.
package parallel
