// Example answers prompts from the terminal, as programs written for go-llama.cpp do.
//
//	go run ./bindings/llama/example model.gguf [adapter.gguf]
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"cftune/bindings/llama"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("usage: example MODEL [ADAPTER]")
	}
	opts := []llama.ModelOption{llama.SetContext(1024)}
	if len(args) == 2 {
		opts = append(opts, llama.SetLoraAdapter(args[1]))
	}
	l, err := llama.New(args[0], opts...)
	if err != nil {
		return err
	}
	defer l.Free()
	l.SetTokenCallback(func(part string) bool {
		fmt.Print(part)
		return true
	})
	lines := bufio.NewScanner(os.Stdin)
	for fmt.Print("> "); lines.Scan(); fmt.Print("\n> ") {
		if err := answer(l, lines.Text()); err != nil {
			return err
		}
	}
	fmt.Println()
	return lines.Err()
}

// answer ends with Ctrl-C, which ends the answer and not the program.
func answer(l *llama.LLama, prompt string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	markup := "<|im_start|>user\n" + prompt + "<|im_end|>\n<|im_start|>assistant\n"
	_, err := l.PredictContext(ctx, markup, llama.SetThreads(0), llama.SetTokens(256), llama.SetTemperature(0.2), llama.SetStopWords("<|im_end|>"))
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
