// Package durable puts files on disk so that a crash, power loss included, leaves either the old state or the new one.
//
// Files are written aside and synced; a rename makes them visible; the parent folder is synced last. What a crash leaves
// behind ends in ".tmp" and may be removed by whoever holds the folder's lock. All writing goes through FS, so that tests
// can make any single operation fail. Reading needs no such care; internal/regular keeps it from pipes and devices.
package durable
