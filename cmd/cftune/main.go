// Command cftune fine-tunes GGUF models with LoRA adapters, by critiques and by answers. Run `cftune --help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"cftune/trainer/launch"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes a command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, launch.SaveSignal)
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
	if said, ok := errors.AsType[saidError](err); ok {
		return said.code
	}
	printError(stderr, err)
	return exitCode(err)
}

// oneSignal is the time within which signals count as one: timeout(1) and some launchers send each twice, to the process
// and to its group.
const oneSignal = time.Second

// interrupt ends the context with the first signal and the process with the second, so that a command that hangs can be
// ended. launch.SaveSignal is never a second one: it may come beside a scheduler's SIGTERM, over another way.
func interrupt(ctx context.Context, stop context.CancelFunc, signals <-chan os.Signal) {
	select {
	case <-signals:
	case <-ctx.Done():
		return
	}
	first := time.Now()
	stop()
	for s := range signals {
		if time.Since(first) > oneSignal && (s != launch.SaveSignal || s == syscall.SIGTERM) {
			os.Exit(codeInterrupted)
		}
	}
}

// printError writes an error, which may have several lines, and a hint where there is one.
func printError(w io.Writer, err error) {
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = strings.ReplaceAll(text, context.Canceled.Error(), "interrupted")
	}
	fmt.Fprintf(w, "cftune: error: %s\n", text)
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(w, "cftune: hint: %s\n", hint)
	}
}
