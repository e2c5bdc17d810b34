package main

import (
	"github.com/spf13/cobra"
)

const rootLong = `cftune fine-tunes language models that are stored as GGUF files: it trains a LoRA adapter over the frozen, quantized
weights, by critiques (CFT), by answers (SFT) or by a mix, and writes the adapter as a GGUF that llama.cpp loads.

Results go to standard output; progress, errors and hints go to standard error.

` + exitCodesHelp

func newRootCommand() *cobra.Command {
	version := false
	root := &cobra.Command{
		Use:           "cftune",
		Short:         "Fine-tune GGUF models with LoRA adapters",
		Long:          rootLong,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return newVersionReport().print(cmd.OutOrStdout())
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(flagError)
	root.Flags().BoolVar(&version, "version", false, "the same as cftune version")
	root.AddCommand(
		newInitCommand(),
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
		newChatCommand(),
		newDoctorCommand(),
		newBenchCommand(),
		newVersionCommand(),
	)
	markUsage(root)
	boundFlags(root)
	return root
}
