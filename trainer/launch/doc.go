// Package launch starts training runs on other machines, and brings back what they made.
//
// A Target is a place where runs can be started: this machine, a host that is reached by ssh, or a Slurm cluster whose
// login host is either of them. Each run has a folder there (the job folder) with its configuration, its log, its state and
// its run directory. What trains there is this very program: it is sent along with its libraries, and a supervisor (Supervise)
// starts `cftune train --or-resume` and writes down how it ends, so that any later call finds out what became of a run
// without having been connected.
//
// Promises: starting a run twice is safe; a run outlives the connection; secrets are passed through standard input or the
// environment only, never in a command line or a file that others can read; a file that was sent or fetched is complete
// and has the digest of its origin, or is not there.
//
// The package has no flags and installs no signal handlers; signals come to it as channels.
package launch
