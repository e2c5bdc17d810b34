package critic

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/internal/durable"
)

// The files that a run writes for its caller.
const (
	CritiquesName = "critiques.jsonl"
	SamplesName   = "samples.jsonl"
	ReportName    = "report.json"
)

// Row is a line of the output, in format cft, with where its new text comes from.
type Row struct {
	ID       string  `json:"id"` // of the record; a sample adds its number
	Query    string  `json:"query"`
	Response string  `json:"response,omitempty"`
	Critique string  `json:"critique,omitempty"`
	Solution string  `json:"solution,omitempty"`
	Label    string  `json:"label,omitempty"`
	Gold     string  `json:"gold,omitempty"`
	Weight   float32 `json:"weight,omitempty"`

	Verdict string `json:"verdict,omitempty"` // what the critique concludes; empty if it does not
	Source  Source `json:"source"`

	others map[string]json.RawMessage // the record's fields that have no place here
}

// Source is where a text comes from.
type Source struct {
	Run     string `json:"run"` // id of the run; its run.json has everything else
	Request int    `json:"request"`
	Teacher string `json:"teacher"`
	Model   string `json:"model,omitempty"`  // as the endpoint named it
	Digest  string `json:"digest,omitempty"` // SHA-256 of a local model
	Number  int    `json:"number"`           // of the texts that the teacher made about the record, from 0
	Seed    uint64 `json:"seed"`
	Finish  string `json:"finish"`
	// Row is the record's own source: who gave the answer that is criticized.
	Row json.RawMessage `json:"row,omitempty"`
}

// rowOf begins the row of an answer.
func (r *Run) rowOf(e Entry) (Row, dataset.Record, error) {
	at := r.plan.place(e.Job)
	record, err := r.plan.Records.Record(at.row)
	if err != nil {
		return Row{}, record, err
	}
	request, err := r.plan.request(e.Job, r.id)
	if err != nil {
		return Row{}, record, err
	}
	row := Row{
		ID: record.RowID, Query: record.Query, Response: record.Response, Solution: record.Solution, Label: record.Label, Gold: record.Gold,
		Source: Source{
			Run: r.id, Request: e.Job, Teacher: r.plan.Teachers[at.teacher].Name, Model: e.Model, Number: at.number, Seed: request.Seed, Finish: e.Finish,
		},
	}
	if digest, ok := r.plan.Teachers[at.teacher].Describe["sha256"].(string); ok {
		row.Source.Digest = digest
	}
	if record.Weight != 1 {
		row.Weight = record.Weight
	}
	if row.ID == "" {
		row.ID = fmt.Sprintf("row-%d", at.row+1)
	}
	rest, err := r.plan.Records.Rest(at.row)
	if err != nil {
		return Row{}, record, err
	}
	row.take(rest)
	return row, record, nil
}

// CritiqueCounts are what the critiques of one teacher look like.
type CritiqueCounts struct {
	Written   int `json:"written"`
	Right     int `json:"right"`
	Wrong     int `json:"wrong"`
	NoVerdict int `json:"no_verdict"`
	Empty     int `json:"empty"`    // answered with nothing; not written
	CutOff    int `json:"cut_off"`  // ended at the bound of tokens; written
	Headings  int `json:"headings"` // "Critique:" at the beginning, which the layout of training adds itself, taken off
	FormCounts
	// Of verdicts on rows with a label, how many agree with it.
	Labelled int `json:"labelled"`
	Agree    int `json:"agree"`
}

// FormCounts are of answers that are not as they should be.
type FormCounts struct {
	Thoughts    int `json:"thoughts"`      // before </think>; not written, but in the journal
	EmptyCutOff int `json:"empty_cut_off"` // of the empty ones, those that ended at the bound of tokens: it was spent on thinking
	Filtered    int `json:"filtered"`      // refused or cut by a filter, as the endpoint says; written, with source.finish
	Unreadable  int `json:"unreadable"`    // have U+FFFD, which stands for bytes that were no text; written
}

// text is what an answer says, counted.
func (c *FormCounts) text(e Entry, keepThoughts bool) string {
	text := e.Text
	if rest, thought := evaluate.CutThought(text); thought && !keepThoughts {
		c.Thoughts++
		text = rest
	}
	text = strings.TrimSpace(text)
	if strings.ContainsRune(text, utf8.RuneError) {
		c.Unreadable++
	}
	switch {
	case text == "" && e.Finish == FinishLength:
		c.EmptyCutOff++
	case text != "" && (e.Finish == finishRefusal || e.Finish == finishFilter):
		c.Filtered++
	}
	return text
}

const critiqueHeading = "Critique:"

// WriteCritiques writes what there is, in the order of the rows, and counts it by teacher. Every answer that says
// something is written: what to think of it is for verification.
func (r *Run) WriteCritiques() (map[string]*CritiqueCounts, error) {
	counts := map[string]*CritiqueCounts{}
	for _, t := range r.plan.Teachers {
		counts[t.Name] = &CritiqueCounts{}
	}
	err := r.writeRows(CritiquesName, func(e Entry, put func(Row) error) error {
		row, _, err := r.rowOf(e)
		if err != nil {
			return err
		}
		c := counts[row.Source.Teacher]
		text := c.text(e, r.o.KeepThoughts)
		if rest, found := strings.CutPrefix(text, critiqueHeading); found {
			text = strings.TrimSpace(rest)
			c.Headings++
		}
		if text == "" {
			c.Empty++
			return nil
		}
		verdict := evaluate.ParseVerdict(text)
		switch verdict {
		case evaluate.Right:
			c.Right++
		case evaluate.Wrong:
			c.Wrong++
		default:
			c.NoVerdict++
		}
		if e.Finish == FinishLength {
			c.CutOff++
		}
		if row.Label != "" && verdict != evaluate.NoVerdict {
			c.Labelled++
			if string(verdict) == row.Label {
				c.Agree++
			}
		}
		c.Written++
		row.Critique, row.Verdict = text, string(verdict)
		return put(row)
	})
	return counts, err
}

// FinishLength is how OpenAI's protocol names an end at the bound of tokens.
const FinishLength = "length"

// Other ends: a refusal has a field of its own in the protocol, and no name.
const (
	finishRefusal = "refusal"
	finishFilter  = "content_filter"
)

// writeRows replaces a file by the rows of all answers.
func (r *Run) writeRows(name string, each func(e Entry, put func(Row) error) error) error {
	_, err := durable.ReplaceFile(durable.OS, filepath.Join(r.o.Dir, name), func(w io.Writer) error {
		return r.journal.answers(func(e Entry) error {
			return each(e, func(row Row) error {
				line, err := row.line()
				if err == nil {
					_, err = w.Write(line)
				}
				return err
			})
		})
	})
	return err
}

// WriteReport writes a value as the run's report.
func (r *Run) WriteReport(v any) error {
	_, err := durable.ReplaceFile(durable.OS, filepath.Join(r.o.Dir, ReportName), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
	return err
}

// Keep says which samples are written.
type Keep struct {
	Right, Wrong bool
	// Mix, if Some, is the share of wrong ones among those that are written: as many as there can be.
	Some bool
	Mix  float64
	// Distinct leaves out answers that repeat an earlier one to the same question.
	Distinct bool
	// Ungraded keeps those that there is no gold answer for.
	Ungraded bool
}

// SampleCounts are what became of the samples.
type SampleCounts struct {
	Answered int `json:"answered"`
	Right    int `json:"right"`
	Wrong    int `json:"wrong"`
	Ungraded int `json:"ungraded"` // no gold answer
	Empty    int `json:"empty"`    // never written
	Repeated int `json:"repeated"` // the same words as an earlier answer to the question
	CutOff   int `json:"cut_off"`
	Written  int `json:"written"`
	// LeftOut by the policy of what to keep.
	LeftOut int `json:"left_out"`
	FormCounts
}

// WriteSamples grades the answers and writes those that are to be kept, in the order of the rows.
func (r *Run) WriteSamples(keep Keep, grade func(answer, gold string) bool) (SampleCounts, error) {
	var labels []evaluate.Verdict // of what passes so far; NoVerdict = ungraded
	first := &grader{run: r, keep: keep, grade: grade, row: -1}
	err := r.journal.answers(func(e Entry) error {
		return first.visit(e, func(_ Row, v evaluate.Verdict) error {
			labels = append(labels, v)
			return nil
		})
	})
	if err != nil {
		return first.counts, err
	}
	chosen, next := keep.choose(labels, r.plan.Seed), 0
	c := &first.counts
	again := &grader{run: r, keep: keep, grade: grade, row: -1} // the same once more: texts are not kept in memory
	err = r.writeRows(SamplesName, func(e Entry, put func(Row) error) error {
		return again.visit(e, func(row Row, _ evaluate.Verdict) error {
			next++
			if !chosen[next-1] {
				c.LeftOut++
				return nil
			}
			c.Written++
			return put(row)
		})
	})
	return *c, err
}

// grader turns answers into rows with labels, and counts them.
type grader struct {
	run    *Run
	keep   Keep
	grade  func(answer, gold string) bool
	counts SampleCounts
	row    int // of the record whose answers are in seen
	seen   map[string]bool
}

// visit grades an answer and hands it on, unless it is empty or a repetition that is not wanted.
func (g *grader) visit(e Entry, put func(Row, evaluate.Verdict) error) error {
	out, record, err := g.run.rowOf(e)
	if err != nil {
		return err
	}
	if at := g.run.plan.place(e.Job).row; at != g.row {
		g.row, g.seen = at, map[string]bool{}
	}
	text := g.counts.text(e, g.run.o.KeepThoughts)
	g.counts.Answered++
	verdict := evaluate.NoVerdict
	switch {
	case text == "":
		g.counts.Empty++
		return nil
	case record.Gold == "":
		g.counts.Ungraded++
	case g.grade(text, record.Gold):
		g.counts.Right++
		verdict = evaluate.Right
	default:
		g.counts.Wrong++
		verdict = evaluate.Wrong
	}
	if e.Finish == FinishLength {
		g.counts.CutOff++
	}
	if g.seen[text] {
		g.counts.Repeated++
		if g.keep.Distinct {
			return nil
		}
	}
	g.seen[text] = true
	out.ID = fmt.Sprintf("%s#%s.%d", out.ID, out.Source.Teacher, out.Source.Number)
	out.Response, out.Label = text, string(verdict)
	return put(out, verdict)
}

// choose says which of the answers are kept. With a mix, those of the label that there is too much of are drawn.
func (k Keep) choose(labels []evaluate.Verdict, seed uint64) []bool {
	chosen := make([]bool, len(labels))
	byLabel := map[evaluate.Verdict][]int{}
	for i, v := range labels {
		byLabel[v] = append(byLabel[v], i)
		chosen[i] = v == evaluate.Right && k.Right || v == evaluate.Wrong && k.Wrong || v == evaluate.NoVerdict && k.Ungraded
	}
	if !k.Some {
		return chosen
	}
	right, wrong := byLabel[evaluate.Right], byLabel[evaluate.Wrong]
	total := float64(len(right) + len(wrong))
	if k.Mix > 0 {
		total = min(total, float64(len(wrong))/k.Mix)
	}
	if k.Mix < 1 {
		total = min(total, float64(len(right))/(1-k.Mix))
	}
	nWrong := int(total*k.Mix + 1e-9)
	nRight := int(total*(1-k.Mix) + 1e-9)
	rng := rand.New(rand.NewPCG(seed, 0x6b656570))
	for _, part := range []struct {
		of   []int
		most int
	}{{right, nRight}, {wrong, nWrong}} {
		for n, i := range rng.Perm(len(part.of)) {
			chosen[part.of[i]] = n < part.most
		}
	}
	return chosen
}
