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
	"sync"
	"syscall"
	"time"

	"cftune/trainer/launch"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, messages())) }

// run executes a command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	last := &lastWords{}
	ctx, stop := context.WithCancel(context.WithValue(context.Background(), lastWordsKey{}, last))
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, launch.SaveSignal)
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(signals, syscall.SIGHUP) // a terminal or a connection has gone: what trains saves
	}
	defer signal.Stop(signals)
	go interrupt(ctx, stop, signals, last)
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if p, ok := stderr.(*patient); ok {
		defer p.flush(ctx)
	}
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
// ended. launch.SaveSignal is never a second one: it may come beside a scheduler's SIGTERM, over another way; nor is SIGHUP, which a shell and
// the system may both send.
func interrupt(ctx context.Context, stop context.CancelFunc, signals <-chan os.Signal, last *lastWords) {
	select {
	case <-signals:
	case <-ctx.Done():
		return
	}
	first := time.Now()
	stop()
	for s := range signals {
		if time.Since(first) > oneSignal && s != syscall.SIGHUP && (s != launch.SaveSignal || s == syscall.SIGTERM) {
			last.say()
			os.Exit(codeInterrupted)
		}
	}
}

// lastWords is what is still done when a second signal ends the process: other processes must not be left behind.
type lastWords struct {
	mu sync.Mutex
	do func()
}

type lastWordsKey struct{}

// atSecondSignal has do called before a second signal ends the process.
func atSecondSignal(ctx context.Context, do func()) {
	if last, ok := ctx.Value(lastWordsKey{}).(*lastWords); ok {
		last.mu.Lock()
		defer last.mu.Unlock()
		last.do = do
	}
}

func (l *lastWords) say() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.do != nil {
		l.do()
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
