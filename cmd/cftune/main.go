// Command cftune fine-tunes GGUF models with LoRA adapters, by critiques and by answers. Run `cftune --help`.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes a command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go interrupt(ctx, stop, signals)
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	printError(stderr, err)
	return exitCode(err)
}

// oneSignal is the time within which signals count as one: timeout(1) and some launchers send each twice, to the process
// and to its group.
const oneSignal = time.Second

// interrupt ends the context with the first signal and the process with the second, so that a command that hangs can be
// ended.
func interrupt(ctx context.Context, stop context.CancelFunc, signals <-chan os.Signal) {
	select {
	case <-signals:
	case <-ctx.Done():
		return
	}
	first := time.Now()
	stop()
	for range signals {
		if time.Since(first) > oneSignal {
			os.Exit(codeInterrupted)
		}
	}
}

// printError writes an error, which may have several lines, and a hint where there is one.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "cftune: error: %v\n", err)
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(w, "cftune: hint: %s\n", hint)
	}
}
