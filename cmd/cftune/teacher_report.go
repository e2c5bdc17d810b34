package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer/critic"
)

// shortError says that not everything was asked or answered.
type shortError struct {
	result critic.Result
}

func (e *shortError) Error() string {
	t := e.result.Tally
	text := fmt.Sprintf("%d of %d requests are answered, %d given up", t.Answered, e.result.Jobs, t.Failed)
	switch stopped := e.result.Stopped; {
	case errors.Is(stopped, context.Canceled):
		text += ": interrupted"
	case stopped != nil:
		text += ": " + stopped.Error()
	}
	return text
}

func (e *shortError) Unwrap() error { return e.result.Stopped }

// hint says how to go on.
func (e *shortError) hint() string {
	const again = "the same command goes on"
	fault, isFault := errors.AsType[*critic.Fault](e.result.Stopped)
	switch {
	case errors.Is(e.result.Stopped, context.Canceled):
		return again
	case errors.Is(e.result.Stopped, critic.ErrBudget):
		return again + " with what is missing; a higher --budget is needed for that"
	case isFault && fault.Status == http.StatusNotFound:
		return again + "; url must have the version (https://host/v1), and model the name that the endpoint knows"
	case isFault && fault.Kind == critic.FaultDenied:
		return again + " once the teacher takes requests: the variable that key_env names, url and model decide that"
	case isFault:
		return again + " once the teacher is there, and asks what was given up last"
	}
	if e.result.Tally.Faults[critic.FaultRefused] > 0 {
		return again + " with what is missing; what a teacher refuses, too long a row say, needs other rows or settings, and those another --output"
	}
	return again + " with what is missing; more --attempts, or another timeout or idle of the teacher, may help"
}

// askReport is report.json, and what --json prints.
type askReport struct {
	Command  string                            `json:"command"`
	Output   string                            `json:"output"` // the file of rows
	Requests int                               `json:"requests"`
	Tally    critic.Tally                      `json:"tally"`
	Stopped  string                            `json:"stopped,omitempty"`
	Critique map[string]*critic.CritiqueCounts `json:"critiques,omitempty"`
	Samples  *critic.SampleCounts              `json:"samples,omitempty"`
}

// finish writes the report, prints it, and says what is missing.
func (a *asking) finish(cmd *cobra.Command, r critic.Result, report askReport, asJSON bool) error {
	report.Requests, report.Tally = r.Jobs, r.Tally
	if r.Stopped != nil {
		report.Stopped = r.Stopped.Error()
	}
	if err := a.run.WriteReport(report); err != nil {
		return err
	}
	var err error
	if asJSON {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(report)
	} else {
		err = report.print(cmd.OutOrStdout(), a.bill)
	}
	if err != nil || r.Complete() {
		return err
	}
	return &shortError{r}
}

func (r askReport) print(w io.Writer, costs bill) error {
	t := r.Tally
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d requests answered, %d given up; %d sent in all, %d answers lost, %d unknown after a kill\n",
		t.Answered, r.Requests, t.Failed, t.Requests, t.Lost, t.Unknown)
	for _, kind := range sortedKeys(t.Faults) {
		fmt.Fprintf(&b, "  %-12s %d\n", kind, t.Faults[kind])
	}
	fmt.Fprintf(&b, "%d tokens in, %d out%s", t.TokensIn, t.TokensOut, costs.text(t.Spent))
	if t.Possible > 0 {
		fmt.Fprintf(&b, ", at most %s more may have been for answers that did not arrive", t.Possible)
	}
	if t.Estimated > 0 {
		fmt.Fprintf(&b, "; of %d answers the endpoint did not tell the tokens: estimated", t.Estimated)
	}
	b.WriteString("\n")
	for _, name := range sortedKeys(r.Critique) {
		c := r.Critique[name]
		fmt.Fprintf(&b, "%s: %d critiques: %d right, %d wrong, %d without a verdict; %d cut off, %d empty (left out)", name, c.Written, c.Right, c.Wrong, c.NoVerdict, c.CutOff, c.Empty)
		if c.Labelled > 0 {
			fmt.Fprintf(&b, "; %d of %d verdicts agree with the row's label", c.Agree, c.Labelled)
		}
		b.WriteString("\n" + formText(c.FormCounts))
	}
	if s := r.Samples; s != nil {
		fmt.Fprintf(&b, "%d answers: %d right, %d wrong, %d without a gold answer; %d repeat another, %d cut off, %d empty; %d written, %d left out\n",
			s.Answered, s.Right, s.Wrong, s.Ungraded, s.Repeated, s.CutOff, s.Empty, s.Written, s.LeftOut)
		b.WriteString(formText(s.FormCounts))
	}
	fmt.Fprintln(&b, r.Output)
	_, err := io.WriteString(w, b.String())
	return err
}

// formText tells of answers that are not as they should be, a line each.
func formText(c critic.FormCounts) string {
	var b strings.Builder
	if c.Thoughts > 0 {
		fmt.Fprintf(&b, "  with a thought before </think>: %d; --keep-thoughts writes it too\n", c.Thoughts)
	}
	if c.EmptyCutOff > 0 {
		fmt.Fprintf(&b, "  empty when --max-tokens was reached: %d; a model that thinks needs more, in a new --output\n", c.EmptyCutOff)
	}
	if c.Filtered > 0 {
		fmt.Fprintf(&b, "  refused or filtered, as the endpoint says (source.finish): %d\n", c.Filtered)
	}
	if c.Unreadable > 0 {
		fmt.Fprintf(&b, "  with characters that could not be read (U+FFFD): %d\n", c.Unreadable)
	}
	return b.String()
}
