package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer/dataset"
	"cftune/trainer/verify"
)

const verifyLong = `Look at critiques before a model learns from them, and write those that pass.

A SOURCE is ` + sourceHelp + `. Formats: cft, webinstruct-cft.
Several critiques of one response, by several teachers or by one, are rows with the same query and response.

Checks:
  mismatch    the verdict is against the row's label; without one, the response is graded against the row's gold answer
  no_verdict  the critique does not conclude, or contradicts itself
  empty       there is no critique
  truncated   it breaks off: no verdict, no end mark, no end of a sentence
  unended     whole, but without [END]
  short, long fewer or more characters than --short and --long
  repetition  the same words over and over
  duplicate   an earlier row has the same query, response and critique
  disagree    other critiques of the same response conclude otherwise
  leak        a --test set asks the same, or shares --leak-share of the query's runs of --leak-words words

Policies, by --policy CHECK=POLICY:
  keep         counted only
  drop         written to OUTPUT.dropped.jsonl instead of OUTPUT, with the checks that the row fails
  down-weight  its weight is multiplied by --weight, and so is its part of the loss
  relabel      for disagree: the verdict of the majority becomes the label of rows that have none; a verdict against it is a
               mismatch

The report tells how often each teacher's verdicts are false, with a 95 % interval (Wilson), on rows with a gold label.
Nothing is dropped without being counted, named and kept.`

// verifyFlags are the flags of `verify`.
type verifyFlags struct {
	output, report string
	tests          []string
	policies       []string
	force, asJSON  bool
	o              verify.Options
}

func newVerifyCommand() *cobra.Command {
	f := verifyFlags{o: verify.DefaultOptions()}
	cmd := &cobra.Command{
		Use:   "verify SOURCE...",
		Short: "Check critiques, and write those that pass",
		Long:  verifyLong,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return codedError{fmt.Errorf("verify: %w", err), codeUsage}
			}
			return f.run(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.output, "output", "", "the file for rows that pass; without it nothing is written but the report")
	flags.StringVar(&f.report, "report", "", "a file for the report as JSON (default: OUTPUT.report.json)")
	flags.StringArrayVar(&f.tests, "test", nil, "a test set that no row may ask from (repeatable): a SOURCE")
	flags.StringArrayVar(&f.policies, "policy", nil, "what becomes of rows that fail a check: CHECK=POLICY (repeatable)")
	flags.Float64Var(&f.o.Weight, "weight", f.o.Weight, "what down-weight multiplies a row's weight by")
	flags.StringVar(&f.o.TeacherField, "teacher-field", "", "where rows name the teacher (default: source.teacher, or teacher)")
	flags.IntVar(&f.o.Limits.Short, "short", f.o.Limits.Short, "characters below which a critique is short")
	flags.IntVar(&f.o.Limits.Long, "long", f.o.Limits.Long, "characters above which it is long (0 = never)")
	flags.Float64Var(&f.o.Thresholds.Right, "score-right", f.o.Thresholds.Right, "where critiques end in a score of 1 to 5: this or more means right")
	flags.Float64Var(&f.o.Thresholds.Wrong, "score-wrong", f.o.Thresholds.Wrong, "and this or less means wrong")
	flags.IntVar(&f.o.Leakage.Words, "leak-words", f.o.Leakage.Words, "words of the runs that are compared with test sets")
	flags.Float64Var(&f.o.Leakage.Share, "leak-share", f.o.Leakage.Share, "share of a query's runs from which on it is a leak")
	flags.BoolVar(&f.force, "force", false, "replace the files")
	flags.BoolVar(&f.asJSON, "json", false, "print the report as JSON")
	return cmd
}

func (f *verifyFlags) check() error {
	o := &f.o
	switch {
	case !(o.Weight > 0 && o.Weight < 1):
		return fmt.Errorf("--weight: must be above 0 and below 1, got %v", o.Weight)
	case o.Limits.Short < 0 || o.Limits.Long < 0:
		return errors.New("--short and --long: must not be negative")
	case !(o.Thresholds.Wrong < o.Thresholds.Right):
		return fmt.Errorf("--score-wrong must be below --score-right, got %v and %v", o.Thresholds.Wrong, o.Thresholds.Right)
	case o.Leakage.Words < 1:
		return fmt.Errorf("--leak-words: must be at least 1, got %d", o.Leakage.Words)
	case !(o.Leakage.Share > 0 && o.Leakage.Share <= 1):
		return fmt.Errorf("--leak-share: must be above 0 and at most 1, got %v", o.Leakage.Share)
	}
	policies := []verify.Policy{verify.Keep, verify.Drop, verify.DownWeight, verify.Relabel}
	for _, text := range f.policies {
		name, policy, ok := strings.Cut(text, "=")
		check, p := verify.Check(name), verify.Policy(policy)
		switch {
		case !ok || !slices.Contains(verify.Checks(), check):
			return fmt.Errorf("--policy %s: must be CHECK=POLICY with one of the checks %s", text, join(verify.Checks()))
		case !slices.Contains(policies, p):
			return fmt.Errorf("--policy %s: the policy must be one of %s", text, join(policies))
		case p == verify.Relabel && check != verify.Disagree:
			return fmt.Errorf("--policy %s: only disagree can be relabelled", text)
		}
		o.Policies[check] = p
	}
	if f.report == "" && f.output != "" {
		f.report = f.output + ".report.json"
	}
	for _, path := range []string{f.output, f.report} {
		if path == "-" {
			return errors.New("--output and --report: name a file: standard output has the report")
		}
	}
	if f.output != "" && (filepath.Clean(f.report) == filepath.Clean(f.output) || filepath.Clean(f.report) == filepath.Clean(f.dropped())) {
		return fmt.Errorf("--report %s: is a file of --output, and would replace its rows", f.report)
	}
	for _, path := range f.files() {
		if err := writable(path); err != nil {
			return err
		}
		if _, err := os.Lstat(path); !f.force && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s %w", path, errOutputExists)
		}
	}
	return nil
}

func join[T ~string](names []T) string {
	var texts []string
	for _, n := range names {
		texts = append(texts, string(n))
	}
	return strings.Join(texts, ", ")
}

// dropped is the file of the rows that do not pass.
func (f *verifyFlags) dropped() string { return f.output + ".dropped.jsonl" }

func (f *verifyFlags) files() []string {
	var files []string
	if f.output != "" {
		files = append(files, f.output, f.dropped())
	}
	if f.report != "" {
		files = append(files, f.report)
	}
	return files
}

func (f *verifyFlags) run(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	for _, text := range args {
		source, err := parseSource(text)
		if err != nil {
			return err
		}
		for _, path := range f.files() {
			if err := notItsData(path, source.Path); err != nil {
				return fmt.Errorf("verify: %w", err)
			}
		}
	}
	set, err := openCritiques(cmd, args)
	if err != nil {
		return err
	}
	defer set.Close()
	for _, text := range f.tests {
		source, err := parseSource(text)
		if err != nil {
			return err
		}
		test, err := openSources(ctx, source)
		if err != nil {
			return err
		}
		defer test.Close()
		f.o.Tests = append(f.o.Tests, verify.Test{Name: source.Name, Set: test})
	}
	v, err := verify.Run(ctx, set, f.o)
	if err != nil {
		return err
	}
	if err := f.write(v); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if f.asJSON {
		return json.NewEncoder(out).Encode(v.Report)
	}
	if err := v.Report.Print(out); err != nil || f.output == "" {
		return err
	}
	_, err = fmt.Fprintf(out, "\n%s has the dropped rows\n%s\n", f.dropped(), f.output)
	return err
}

func openCritiques(cmd *cobra.Command, args []string) (*dataset.Set, error) {
	var sources []namedSource
	for _, text := range args {
		source, err := parseSource(text)
		if err != nil {
			return nil, err
		}
		if source.Format != "cft" && source.Format != "webinstruct-cft" {
			return nil, codedError{fmt.Errorf("verify: %s: format %s has no critiques; it must be cft or webinstruct-cft", source.Path, source.Format), codeUsage}
		}
		sources = append(sources, source)
	}
	return openSources(cmd.Context(), sources...)
}

// write writes rows and report; the report comes last.
func (f *verifyFlags) write(v *verify.Verifier) error {
	if f.output != "" {
		err := writeAside(f.output, func(kept io.Writer) error {
			return writeAside(f.dropped(), func(dropped io.Writer) error { return v.Write(kept, dropped) })
		})
		if err != nil {
			return err
		}
	}
	if f.report == "" {
		return nil
	}
	return writeAside(f.report, func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", " ")
		return encoder.Encode(v.Report)
	})
}
