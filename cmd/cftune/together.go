package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cftune/trainer/launch"
)

// newLaunchTogetherCommand minds a launcher of several processes.
func newLaunchTogetherCommand() *cobra.Command {
	return &cobra.Command{
		Use: "together -- LAUNCHER...", Hidden: true, Args: cobra.MinimumNArgs(1),
		Short: "On a target: start several processes, which save when this one is asked to end",
		RunE:  func(cmd *cobra.Command, args []string) error { return startTogether(cmd, args) },
	}
}

// startTogether runs a launcher. Its exit code is this command's, and what it says is all that is said.
func startTogether(cmd *cobra.Command, words []string) error {
	kill, ended := make(chan struct{}), make(chan struct{})
	defer close(ended)
	atSecondSignal(cmd.Context(), func() {
		close(kill)
		<-ended // within a bounded time
	})
	code, err := launch.Together(words, cmd.Context().Done(), kill, cmd.InOrStdin(), cmd.OutOrStdout(), inherited(cmd.ErrOrStderr()))
	select {
	case <-kill:
		code = codeInterrupted // whatever the launcher makes of it
	default:
	}
	return said(code, err)
}

// newLaunchOutlastCommand minds a server by which others start processes.
func newLaunchOutlastCommand() *cobra.Command {
	return &cobra.Command{
		Use: "outlast -- SERVER...", Hidden: true, Args: cobra.MinimumNArgs(1),
		Short: "On a target: run a server, and when it is asked to end, wait for its processes",
		RunE: func(cmd *cobra.Command, args []string) error {
			return said(launch.Outlast(args, cmd.Context().Done()))
		},
	}
}

// said is the end of a program that has said itself what was to say.
func said(code int, err error) error {
	if err == nil && code != 0 {
		return saidError{code}
	}
	return err
}

// saidError ends the process with a code; other processes have said why.
type saidError struct{ code int }

func (e saidError) Error() string {
	return fmt.Sprintf("the processes ended with exit code %d", e.code)
}

// startProcesses gives a command to so many processes of this program that train together.
func startProcesses(cmd *cobra.Command, args []string, processes int) error {
	mpirun := launch.Mpirun(processes)
	if _, err := exec.LookPath(mpirun[0]); err != nil {
		return codedError{errors.New("--processes: no mpirun on this machine; of Debian and Ubuntu, openmpi-bin has it"), codeUsage}
	}
	self, err := exec.LookPath(os.Args[0]) // as it was called: a link's name stays
	if err == nil {
		self, err = filepath.Abs(self)
	}
	if err != nil {
		return err
	}
	return startTogether(cmd, append(append(mpirun, self), sameCommand(cmd, args, "--parallel=mpi")...))
}

// sameCommand is a command's line as it was given, without --processes and with more flags.
func sameCommand(cmd *cobra.Command, args []string, more ...string) []string {
	words := strings.Fields(cmd.CommandPath())[1:]
	cmd.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			if f.Name != processesFlag {
				words = append(words, "--"+f.Name+"="+v)
			}
		}
	})
	words = append(words, more...)
	if len(args) > 0 {
		words = append(words, "--") // a run's name may begin with a dash
	}
	return append(words, args...)
}

const processesFlag = "processes"
