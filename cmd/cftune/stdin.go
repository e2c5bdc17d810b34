package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer/dataset/source"
)

// standardInput is a command's standard input, which an interrupt ends. On a terminal it is said that something is waited for.
func standardInput(cmd *cobra.Command) io.Reader {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && hasSize(f) {
		fmt.Fprintln(cmd.ErrOrStderr(), "reading from the terminal; Ctrl-D on a line of its own ends it")
	}
	return source.Interruptible(cmd.Context(), in)
}

// plainJSON says in words of JSON what is wrong with a text.
func plainJSON(err error) error {
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s: must be %s, is a JSON %s", orDefault(kind.Field, "it"), jsonKind(kind), kind.Value)
	}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("no JSON: %w", err)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

// jsonKind names what a value of Go is in JSON.
func jsonKind(e *json.UnmarshalTypeError) string {
	switch kind := e.Type.Kind().String(); kind {
	case "string":
		return "text"
	case "struct", "map":
		return "an object"
	case "slice", "array":
		return "a list"
	case "bool":
		return "true or false"
	default:
		return "a number"
	}
}
