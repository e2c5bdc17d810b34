package main

import (
	"github.com/spf13/cobra"
)

const rootLong = `cftune fine-tunes language models that are stored as GGUF files: it trains a LoRA adapter over the frozen, quantized
weights, by critiques (CFT), by answers (SFT) or by a mix, and writes the adapter as a GGUF that llama.cpp loads.

Results go to standard output; progress, errors and hints go to standard error.

` + exitCodesHelp

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cftune",
		Short:         "Fine-tune GGUF models with LoRA adapters",
		Long:          rootLong,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return codedError{err, codeUsage} })
	root.AddCommand(
		newTrainCommand(),
		newResumeCommand(),
		newExportCommand(),
		newMergeCommand(),
		newQuantizeCommand(),
		newImatrixCommand(),
		newInspectCommand(),
		newPullCommand(),
		newCheckCommand(),
		newRunsCommand(),
		newDashboardCommand(),
		newLaunchCommand(),
		newDataCommand(),
		newVerifyCommand(),
		newSampleCommand(),
		newCritiqueCommand(),
		newEvaluateCommand(),
		newDemoCommand(),
		newStudyCommand(),
		newGenerateCommand(),
		newDoctorCommand(),
		newBenchCommand(),
		newVersionCommand(),
	)
	markUsage(root)
	return root
}

// markUsage gives the errors of wrong arguments their exit code, in all commands.
func markUsage(cmd *cobra.Command) {
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			check = cobra.ArbitraryArgs
		}
		if err := check(cmd, args); err != nil {
			return codedError{err, codeUsage}
		}
		if err := cmd.ValidateRequiredFlags(); err != nil {
			return codedError{err, codeUsage}
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		markUsage(sub)
	}
}
