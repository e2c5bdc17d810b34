package main

import (
	"os"

	"github.com/spf13/cobra"

	"cftune/trainer/launch"
)

// exitError ends the process with a code and no words: they are in the job's log.
type exitError struct{ code int }

func (e exitError) Error() string { return "see the job's log" }

// newLaunchJobCommand is what runs on a target: the supervisor of one job.
func newLaunchJobCommand() *cobra.Command {
	return &cobra.Command{
		Use: "job FOLDER", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "On a target: run the job in a folder to its end",
		RunE: func(_ *cobra.Command, args []string) error {
			keepPrivate()
			asks, end := askSupervisor()
			defer end()
			code, err := launch.Supervise(args[0], asks)
			if err != nil {
				return err
			}
			if code != 0 {
				return codedError{exitError{code}, code}
			}
			return nil
		},
	}
}

// newLaunchFarCommand serves one request of a launch elsewhere.
func newLaunchFarCommand() *cobra.Command {
	return &cobra.Command{
		Use: "far", Hidden: true, Args: cobra.NoArgs,
		Short: "On a target: answer one request, given on standard input",
		RunE: func(cmd *cobra.Command, _ []string) error {
			keepPrivate()
			program, err := os.Executable()
			if err != nil {
				return err
			}
			return launch.Far(cmd.InOrStdin(), cmd.OutOrStdout(), program)
		},
	}
}
