// Command model writes the small random model, and rows to train it on, with which scripts/gpu-check runs the program itself on
// a device: model FOLDER.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cftune/internal/testmodel"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: model FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "model:", err)
		os.Exit(1)
	}
}

func write(folder string) error {
	// Heads of 64: those that the faster kernels of compute capability 9.0 take.
	err := testmodel.Write(filepath.Join(folder, "model.gguf"), testmodel.Options{
		Layers: 4, Embd: 256, Heads: 4, KVHeads: 2, FF: 512, Type: testmodel.Q8_0, Seed: 7})
	if err != nil {
		return err
	}
	var rows strings.Builder
	for i := range 64 {
		sum, judged := 2*i+3, "right"
		if i%2 == 1 {
			sum, judged = sum+i, "wrong"
		}
		fmt.Fprintf(&rows, `{"query": "What is %d + %d?", "response": "It is %d.", "critique": "%d and %d make %d. Conclusion: %s"}`+"\n",
			i, i+3, sum, i, i+3, 2*i+3, judged)
	}
	return os.WriteFile(filepath.Join(folder, "train.jsonl"), []byte(rows.String()), 0o666)
}
