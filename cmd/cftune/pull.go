package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer/config"
	"cftune/trainer/gguf"
	"cftune/trainer/hub"
)

const pullLong = `Bring a model to this machine and print its path.

  hf://owner/repo/file.gguf[@revision]   from Hugging Face's hub; of a model in shards, name the first: all come
  ollama://[host/][namespace/]name[:tag] what ollama's store on this machine has; nothing is downloaded

Configurations (model:) and --model take such names too, and bring what is missing.

From the hub a file goes to the cache of Hugging Face's own libraries, in their layout: HF_HUB_CACHE, or hub in HF_HOME, or
~/.cache/huggingface/hub. A download that was cut off goes on where it ended; what arrived is compared with the digest that the
hub tells before it gets its name. Of several processes one downloads and the others wait. Where the hub cannot be reached,
what the cache has is taken, and that is said.

Heeded: HF_ENDPOINT, HF_TOKEN (or the token file of HF_HOME, HF_TOKEN_PATH), HF_HUB_OFFLINE, HTTPS_PROXY, HTTP_PROXY, NO_PROXY,
OLLAMA_MODELS. The token goes to the hub alone, not to the hosts that it redirects to.

`

func newPullCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pull NAME",
		Short: "Bring a model from Hugging Face's hub, or find it in ollama's store",
		Long:  pullLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !hub.IsReference(args[0]) {
				return codedError{fmt.Errorf("pull %q: want hf://owner/repo/file.gguf or ollama://name:tag", args[0]), codeUsage}
			}
			return pull(cmd.Context(), args[0], asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was found as one JSON object")
	return cmd
}

// pull finds a model, verifies it and tells of it.
func pull(ctx context.Context, name string, asJSON bool, out, notes io.Writer) error {
	found, err := modelStore(notes).Find(ctx, name)
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	if found.Downloaded == 0 { // a download is verified as it arrives
		if err := found.Verify(); err != nil {
			return fmt.Errorf("pull: %w", err)
		}
	}
	if !strings.HasSuffix(found.Path, ".gguf") && found.Ollama == nil {
		fmt.Fprintf(notes, "note: %s is not a GGUF by its name\n", found.Path)
	} else if _, err := gguf.Open(found.Path); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	if asJSON {
		return json.NewEncoder(out).Encode(found)
	}
	fmt.Fprintf(notes, "%s: %s, %s downloaded\n", name, spell.Size(uint64(found.Bytes)), spell.Size(uint64(found.Downloaded)))
	if o := found.Ollama; o != nil {
		for what, there := range map[string]bool{"a template": o.Template != "", "a system message": o.System != "", "parameters": len(o.Parameters) > 0, "licenses": len(o.Licenses) > 0} {
			if there {
				fmt.Fprintf(notes, "it has %s of ollama's, which training does not heed: --json shows it\n", what)
			}
		}
	}
	_, err = fmt.Fprintln(out, found.Path)
	return err
}

// modelStore finds models as the environment says, and tells what it does.
func modelStore(notes io.Writer) *hub.Store {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // what lies below it cannot be found
	}
	s := hub.FromEnvironment(os.Getenv, home)
	s.Note = func(text string) { fmt.Fprintf(notes, "note: %s\n", text) }
	s.Progress = downloadProgress(notes)
	return s
}

// progressEvery is how often a download is told of where there is no terminal, and barEvery where there is one.
const (
	progressEvery = 10 * time.Second
	barEvery      = 200 * time.Millisecond
)

// downloadProgress shows how far a download is.
func downloadProgress(notes io.Writer) func(file string, done, total int64) {
	every, end := progressEvery, "\n"
	if f, ok := notes.(*os.File); ok && hasSize(f) {
		every, end = barEvery, "\r"
	}
	last := time.Now()
	return func(file string, done, total int64) {
		if time.Since(last) < every && (done < total || end == "\n") {
			return
		}
		last = time.Now()
		fmt.Fprintf(notes, "%s: %s of %s%s", file, spell.Size(uint64(done)), spell.Size(uint64(total)), end)
		if end == "\r" && done == total {
			fmt.Fprintln(notes)
		}
	}
}

// findModel returns the file that a model's name stands for: a path, hf:// or ollama://.
func findModel(ctx context.Context, name string, notes io.Writer) (string, error) {
	if !hub.IsReference(name) {
		if name == "" { // a teacher that is an endpoint
			return "", nil
		}
		return name, modelThere(name)
	}
	found, err := modelStore(notes).Find(ctx, name)
	if err != nil {
		return "", fmt.Errorf("model: %w", err)
	}
	return found.Path, nil
}

// localModel is a configuration with its model's file instead of a name on the hub.
func localModel(ctx context.Context, run config.Run, notes io.Writer) (config.Run, error) {
	var err error
	run.Model, err = findModel(ctx, run.Model, notes)
	return run, err
}
