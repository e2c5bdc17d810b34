package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer/shard"
	"cftune/trainer/study"
)

const studyLong = `Run a study: one file describes model, data, arms, seeds, budget and claims; the command trains every arm with every
seed, lets every model answer the test questions and judge answers, and reports what came out, with intervals.

Arms learn answers (sft), critiques (cft), refinements or mixes and orders of them, from the same questions; corrupt turns
the conclusions of a share of the critiques into their opposites. Claims are decided by a rule that is written down before
the first run (cftune study --rule shows it) as yes, no or not shown.

Everything lies under the file's output: study.json (the record: file, digests, prompts, versions, seeds), data, runs
(ordinary run directories), adapters, scores (every text) and report.json, report.md and report.html. What is finished is
not done again: a study that was interrupted or killed goes on when the same command is given again. A study whose file,
model or data has changed since it began is refused.

With --shard 2/4 this process makes every fourth model (a run and its texts), from the second on, and nothing else; the others
may be made at the same time, on other machines that share the folder. The one that ends last writes the report; the same
command without --shard makes what is missing, and writes it too.

`

type studyFlags struct {
	sets                       []string
	dryRun, reportOnly, asJSON bool
	rule                       bool
	shard                      string
	part                       shard.Shard
}

func newStudyCommand() *cobra.Command {
	var f studyFlags
	cmd := &cobra.Command{
		Use:   "study FILE.yaml",
		Short: "Compare ways of training, with seeds and claims decided beforehand",
		Long:  studyLong + exitCodesHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.rule {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.rule {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), study.Rule)
				return err
			}
			if f.dryRun && f.reportOnly {
				return codedError{errors.New("--dry-run and --report-only exclude each other"), codeUsage}
			}
			var err error
			if f.part, err = shard.Parse(f.shard, os.Getenv); err != nil {
				return codedError{err, codeUsage}
			}
			if f.reportOnly && !f.part.All() {
				return codedError{errors.New("--report-only reports on the whole study: leave --shard out"), codeUsage}
			}
			spec, err := loadStudy(cmd.Context(), args[0], f.sets)
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), spec, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringArrayVar(&f.sets, "set", nil, "override a key of the file (key=value; list items by name: sets.svamp.path=FILE)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan, with estimates of time and disk, and write nothing")
	cmd.Flags().BoolVar(&f.reportOnly, "report-only", false, "make the report of what is there, and train and score nothing")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print the plan, or the report, as JSON")
	cmd.Flags().StringVar(&f.shard, "shard", "", "make every OF-th model, as 2/4: the second of four processes; auto: as mpirun, srun, a Slurm array or an indexed Job started this one")
	cmd.Flags().BoolVar(&f.rule, "rule", false, "show the rule by which claims are decided")
	return cmd
}

func (f studyFlags) run(ctx context.Context, spec study.Spec, out, notes io.Writer) error {
	began := time.Now()
	o := study.Options{
		Engine: &studyEngine{notes: notes}, Version: programVersion(), Cache: cacheFolder(), Shard: f.part,
		Note: func(text string) { fmt.Fprintf(notes, "[%6s] %s\n", time.Since(began).Round(time.Second), text) },
	}
	if f.dryRun {
		plan, err := study.MakePlan(ctx, spec, o)
		if err != nil {
			return studyError(err)
		}
		if f.asJSON {
			return json.NewEncoder(out).Encode(plan)
		}
		return printPlan(out, plan)
	}
	if !f.reportOnly {
		if err := ownFolder(spec.Output, study.StateName, "report.md", "report.html", "report.json"); err != nil {
			return fmt.Errorf("study: %w", err)
		}
		state, err := study.Do(ctx, spec, o)
		if err != nil {
			return studyError(err)
		}
		if missing := state.Missing(); len(missing) > 0 {
			o.Note(fmt.Sprintf("shard %d/%d is done; the report comes with the last of what is missing: %s", f.part.Number, f.part.Of, strings.Join(missing, ", ")))
			return nil
		}
	}
	return f.report(ctx, spec, out, notes)
}

// report writes the three files, and the words at a terminal.
func (f studyFlags) report(ctx context.Context, spec study.Spec, out, notes io.Writer) error {
	r, err := study.MakeReport(spec.Output)
	if err != nil {
		return studyError(err)
	}
	paths, err := study.WriteReport(ctx, spec.Output, r)
	if err != nil {
		return studyError(err)
	}
	if f.asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	fmt.Fprintln(notes)
	for _, c := range r.Claims {
		fmt.Fprintf(notes, "%-10s %s\n           %s\n", c.Word, c.Text, c.Because)
	}
	for _, line := range r.Reading {
		fmt.Fprintln(notes, line)
	}
	for _, path := range paths {
		if _, err := fmt.Fprintln(out, path); err != nil {
			return err
		}
	}
	return nil
}

func studyError(err error) error { return goesOn(fmt.Errorf("study: %w", err)) }

func printPlan(out io.Writer, p study.Plan) error {
	fmt.Fprintf(out, "study: %s, %d runs\nmodel: %s\n", p.Name, len(p.Runs), p.Model.File)
	for _, s := range p.Sets {
		fmt.Fprintf(out, "set %s: %d training, %d validation and %d test rows\n", s.Name, s.Train, s.Validation, s.Test)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(out, "note: %s\n", n)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "arm\tseeds\tsteps\tepochs\ttarget tokens\ttokens")
	for _, a := range p.Arms {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", a.Arm, a.Seeds, a.Steps, a.Epochs, a.Targets, a.Tokens)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "texts: %d of %d models, at most %d tokens in all\n", p.Texts, p.Models, p.TextTokens)
	if len(p.Share) > 0 {
		fmt.Fprintf(out, "of these models the shard makes %d: %s\n", len(p.Share), strings.Join(p.Share, ", "))
	}
	if p.Seconds > 0 {
		fmt.Fprintf(out, "time: about %s (%s)\n", spell.Estimate(time.Duration(p.Seconds*float64(time.Second))), p.SecondsFrom)
	} else {
		fmt.Fprintln(out, "time: not known for this device before a run is made")
	}
	_, err := fmt.Fprintf(out, "disk: about %s in %s\nclaims: %d, decided by the rule that cftune study --rule shows\n", spell.Size(uint64(p.Bytes)), p.Output, p.Claims)
	return err
}
