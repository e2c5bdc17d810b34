// Package runs finds run directories and tells where the runs stand: whether they train, how far they are, what they
// were made from, which checkpoints they have.
//
// It only reads, and takes no lock that a run would notice. Runs that are damaged are told as such, not left out.
package runs
