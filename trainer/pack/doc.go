// Package pack turns examples into packs: micro-batches of several examples side by side, without padding.
//
// It owns the one place where tokens are shifted (Targets). An example's tokens after its last target are left out of
// the pack: attention is causal, so no target's loss or gradient depends on them. Build packs by the examples' lengths
// and order alone; BuildShared also computes prefixes that examples have in common only once.
package pack
