package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError says that a command line cannot be understood.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

// newUsageError adds how the command is meant to be called.
func newUsageError(cmd *cobra.Command, err error) error {
	return &usageError{err, fmt.Sprintf("usage: %s; %s --help tells the rest", cmd.UseLine(), cmd.CommandPath())}
}

// argumentError says which argument is one too many, or which command is not there and which may be meant.
func argumentError(cmd *cobra.Command, args []string, err error) error {
	if len(args) == 0 || !strings.HasPrefix(err.Error(), "unknown command") {
		return newUsageError(cmd, err)
	}
	if !cmd.HasSubCommands() {
		return newUsageError(cmd, fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args[0]))
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &usageError{err, fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), strings.Join(near, " or "))}
	}
	return &usageError{err, fmt.Sprintf("%s --help lists the commands", cmd.CommandPath())}
}

// markUsage gives the errors of wrong arguments their exit code, in all commands.
func markUsage(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			check = cobra.ArbitraryArgs
		}
		if err := check(cmd, args); err != nil {
			return argumentError(cmd, args, err)
		}
		if err := cmd.ValidateRequiredFlags(); err != nil {
			return newUsageError(cmd, err)
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		markUsage(sub)
	}
}

// flagError says what a flag takes, where its value is none of that; pflag would pass on what strconv says.
func flagError(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		what := e.Unwrap().Error()
		if kind, known := flagKinds[e.GetFlag().Value.Type()]; known && !as[*boundError](e.Unwrap()) {
			what = kind
		}
		err = fmt.Errorf("--%s: must be %s, got %q", e.GetFlag().Name, what, e.GetValue())
	}
	return newUsageError(cmd, err)
}

var flagKinds = map[string]string{
	"int": "a whole number", "int64": "a whole number", "uint64": "a whole number of at least 0", "float64": "a number", "bool": "true or false",
	"duration": "a time such as 90s or 10m",
}

// Bounds of flags that have the same name in several commands. Beyond them libllama and ggml have no room, or the system no threads, which would be
// found out after the model is loaded, or by the end of the process.
var flagBounds = map[string]struct{ least, most int64 }{
	"threads": {0, 512}, "parallel": {commands, 256}, "gpu-layers": {0, 1 << 16}, "context": {0, mostTokens},
	"max-tokens": {commands, mostTokens}, "answer-tokens": {commands, mostTokens}, "critique-tokens": {commands, mostTokens}, "loss-context": {commands, mostTokens},
}

// commands is a bound below which a command itself says what is least.
const commands = math.MinInt64

// mostTokens is above what any model is made for.
const mostTokens = 1 << 24

// boundFlags gives the flags of a command, and of those below it, their bounds.
func boundFlags(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if bounds, ok := flagBounds[f.Name]; ok && f.Value.Type() == "int" {
			f.Value = bounded{f.Value, bounds.least, bounds.most}
		}
	})
	for _, sub := range cmd.Commands() {
		boundFlags(sub)
	}
}

// bounded is a whole number that must not be below or above its bounds.
type bounded struct {
	pflag.Value
	least, most int64
}

func (b bounded) Set(text string) error {
	switch n, err := strconv.ParseInt(text, 0, 64); {
	case err == nil && n > b.most:
		return &boundError{"at most", b.most}
	case err == nil && n < b.least:
		return &boundError{"at least", b.least}
	}
	return b.Value.Set(text)
}

type boundError struct {
	which string
	bound int64
}

func (e *boundError) Error() string { return fmt.Sprintf("%s %d", e.which, e.bound) }
