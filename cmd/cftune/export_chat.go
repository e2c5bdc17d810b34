package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
)

// readTemplate reads a file with a chat template. A byte order mark, which some editors put before all text, would come into every prompt.
func readTemplate(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", codedError{fmt.Errorf("chat template: %w", err), codeUsage}
	}
	return strings.TrimPrefix(string(text), "\ufeff"), nil
}

// checkChat refuses a chat template file that is not what the run was trained with any more: what is merged in, what the proof
// lays rows out with, and what is asked would be the file's text of today.
func checkChat(record trainer.Record) error {
	file := record.Config.Chat.TemplateFile
	if file == "" || record.ChatDigest == "" {
		return nil
	}
	text, err := readTemplate(file)
	if err != nil {
		return fmt.Errorf("what the run was trained with: %w", err)
	}
	if now := digestOf([]byte(text)); now != record.ChatDigest {
		return codedError{fmt.Errorf("%s is not the chat template that the run was trained with (sha256 %.12s, it was %.12s): put that one back",
			file, now, record.ChatDigest), codeUsage}
	}
	return nil
}

// trainedChat returns what the conversations of a run were laid out with, where adapter is a run or one of its checkpoints, so
// that it is asked as it was trained. Nothing where it is another adapter.
func trainedChat(adapter string) (config.Chat, error) {
	run, _, isStep := checkpoint.SplitStep(adapter)
	if !isStep {
		run = adapter
		if file, err := adapterFile(adapter); err != nil || file == adapter {
			return config.Chat{}, err // no run
		}
	}
	record, err := trainer.ReadRecord(run)
	if err != nil {
		return config.Chat{}, err
	}
	return record.Config.Chat, checkChat(record)
}

// layOut fills in what flags leave open, a template file and a system message, with what the adapter's run was trained with.
func layOut(cmd *cobra.Command, adapter string, templateFile, system *string) error {
	chat, err := trainedChat(adapter)
	if err != nil {
		return err
	}
	flags := cmd.Flags()
	if !flags.Changed("template-file") && chat.TemplateFile != "" {
		*templateFile = chat.TemplateFile
		fmt.Fprintf(cmd.ErrOrStderr(), "note: the chat template is that of the run's training, %s\n", chat.TemplateFile)
	}
	if !flags.Changed("system") && chat.System != "" {
		*system = chat.System
		fmt.Fprintf(cmd.ErrOrStderr(), "note: the system message is that of the run's training, %q\n", chat.System)
	}
	return nil
}

// noteChat tells what of the conversations that were trained on the export does not hold.
func (e *exporter) noteChat(record trainer.Record, notes io.Writer) error {
	if record.ChatDigest == "" {
		return nil // all rows were tokenized elsewhere
	}
	chat := record.Config.Chat
	switch {
	case chat.TemplateFile != "" && e.format != "merged":
		fmt.Fprintf(notes, "note: the run was trained with the chat template %s, which the base model does not have: serve with that file, or export --format merged, which holds it\n", chat.TemplateFile)
	case chat.TemplateFile == "":
		vocab, err := engine.OpenVocab(e.model)
		if err != nil {
			return engineError(err)
		}
		defer vocab.Close()
		if digestOf([]byte(vocab.ChatTemplate())) != record.ChatDigest {
			fmt.Fprintf(notes, "note: %s has another chat template than the model that the run was trained on\n", e.model)
		}
	}
	if chat.System != "" && e.modelfile == "" {
		fmt.Fprintf(notes, "note: the run was trained with the system message %q (chat.system), which no GGUF holds: conversations must begin with it\n", chat.System)
	}
	return nil
}
