package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
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
