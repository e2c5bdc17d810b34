package verify

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
)

// Report is everything that was counted.
type Report struct {
	Files      []File         `json:"files"`
	Digest     string         `json:"digest"` // of the rows
	Rows       int            `json:"rows"`
	Kept       int            `json:"kept"`       // as they are or with less weight
	Dropped    int            `json:"dropped"`    // by the policies of the checks that they fail
	Lowered    int            `json:"lowered"`    // kept with less weight
	Relabelled int            `json:"relabelled"` // have the majority's verdict as label
	Checks     []Count        `json:"checks"`
	Unjudged   map[string]int `json:"unjudged"` // why critiques have no verdict
	Verdicts   map[string]int `json:"verdicts"`
	Labels     Labels         `json:"labels"`
	Groups     Groups         `json:"groups"`
	Tests      []Leaks        `json:"tests,omitempty"`
	All        Teacher        `json:"all"`
	Teachers   []Teacher      `json:"teachers"`
	Settings   Settings       `json:"settings"`
}

// File is an input.
type File struct {
	Name string `json:"name"`
	Rows int    `json:"rows"`
}

// Count is how many rows fail a check. A row may fail several.
type Count struct {
	Check  Check    `json:"check"`
	Policy Policy   `json:"policy"`
	Rows   int      `json:"rows"`
	First  []string `json:"first,omitempty"` // some of them
}

// Labels are where gold labels come from.
type Labels struct {
	Given  int `json:"given"`  // by the row
	Graded int `json:"graded"` // by comparing the response with the gold answer
	None   int `json:"none"`
}

// Groups are responses with more than one verdict.
type Groups struct {
	Several  int `json:"several"`
	Disagree int `json:"disagree"`
	Tied     int `json:"tied"` // without a majority
}

// Leaks are the rows whose query a test set has.
type Leaks struct {
	Test    string `json:"test"`
	Queries int    `json:"queries"` // of the test set
	Exact   int    `json:"exact"`   // but for letter case, marks and spaces
	Overlap int    `json:"overlap"` // not exact, but of the same runs of words
}

// Teacher is how often somebody's verdicts are false, of rows with a gold label. Relabelled rows are not among them.
type Teacher struct {
	Name     string         `json:"name"`
	Rows     int            `json:"rows"`
	Errors   evaluate.Share `json:"errors"`    // of the verdicts on labelled rows
	OnRight  evaluate.Share `json:"on_right"`  // right answers called wrong
	OnWrong  evaluate.Share `json:"on_wrong"`  // wrong answers called right
	Unjudged evaluate.Share `json:"unjudged"`  // of all rows
	SaidWhat map[string]int `json:"said_what"` // "label/verdict": rows
}

// Settings are what the counts depend on.
type Settings struct {
	Weight     float64             `json:"weight"`
	Thresholds evaluate.Thresholds `json:"thresholds"`
	Limits     Limits              `json:"limits"`
	Leakage    Leakage             `json:"leakage"`
}

// maxNamed is how many rows of a check the report names; the file of dropped rows has them all.
const maxNamed = 10

func newReport(o Options) Report {
	r := Report{
		Unjudged: map[string]int{}, Verdicts: map[string]int{},
		Settings: Settings{o.Weight, o.Thresholds, o.Limits, o.Leakage},
	}
	for _, c := range Checks() {
		r.Checks = append(r.Checks, Count{Check: c, Policy: o.Policies[c]})
	}
	for _, t := range o.Tests {
		r.Tests = append(r.Tests, Leaks{Test: t.Name, Queries: t.Set.Len()})
	}
	return r
}

func newTeacher(name string) Teacher { return Teacher{Name: name, SaidWhat: map[string]int{}} }

// outcomes are a teacher's verdicts, as successes are counted: an error is one.
type outcomes struct{ all, onRight, onWrong, unjudged []bool }

func (o *outcomes) add(r row) {
	o.unjudged = append(o.unjudged, r.verdict == evaluate.NoVerdict)
	if r.label == evaluate.NoVerdict || r.verdict == evaluate.NoVerdict {
		return
	}
	mistaken := r.verdict != r.label
	o.all = append(o.all, mistaken)
	if r.label == evaluate.Right {
		o.onRight = append(o.onRight, mistaken)
	} else {
		o.onWrong = append(o.onWrong, mistaken)
	}
}

func (t *Teacher) take(o outcomes) {
	t.Errors, t.OnRight, t.OnWrong = evaluate.NewShare(o.all), evaluate.NewShare(o.onRight), evaluate.NewShare(o.onWrong)
	t.Unjudged = evaluate.NewShare(o.unjudged)
}

func orNone(v evaluate.Verdict) string {
	if v == evaluate.NoVerdict {
		return "none"
	}
	return string(v)
}

// finish counts the rows.
func (r *Report) finish(set *dataset.Set, rows []row) {
	names, records := set.Files()
	for i := range names {
		r.Files = append(r.Files, File{names[i], records[i]})
	}
	r.Digest, r.Rows = set.Digest(), len(rows)
	r.All = newTeacher("all")
	var all outcomes
	each := make([]outcomes, len(r.Teachers))
	for _, row := range rows {
		switch {
		case row.drop:
			r.Dropped++
		case row.lower:
			r.Lowered++
		}
		r.Verdicts[orNone(row.verdict)]++
		for i := range r.Checks {
			if c := &r.Checks[i]; slices.Contains(row.failed, c.Check) {
				if c.Rows++; len(c.First) < maxNamed {
					c.First = append(c.First, row.id)
				}
			}
		}
		all.add(row)
		each[row.teacher].add(row)
		said := orNone(row.label) + "/" + orNone(row.verdict)
		r.All.SaidWhat[said]++
		r.Teachers[row.teacher].SaidWhat[said]++
		r.Teachers[row.teacher].Rows++
	}
	r.Kept = r.Rows - r.Dropped
	r.All.Rows = r.Rows
	r.All.take(all)
	for i := range r.Teachers {
		r.Teachers[i].take(each[i])
	}
}

// Print writes the report as text.
func (r Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "%d rows: %d kept (%d of them with weight x %v), %d dropped, %d relabelled\n", r.Rows, r.Kept, r.Lowered, r.Settings.Weight, r.Dropped, r.Relabelled)
	fmt.Fprintf(w, "verdicts: %d right, %d wrong, %d none\n", r.Verdicts["right"], r.Verdicts["wrong"], r.Verdicts["none"])
	for _, reason := range sortedKeys(r.Unjudged) {
		fmt.Fprintf(w, "  no verdict: %s: %d\n", reason, r.Unjudged[reason])
	}
	fmt.Fprintf(w, "labels: %d given, %d by grading the response, %d rows without\n", r.Labels.Given, r.Labels.Graded, r.Labels.None)
	if r.Groups.Several > 0 {
		fmt.Fprintf(w, "responses with several verdicts: %d, in %d of them teachers disagree (%d without a majority)\n", r.Groups.Several, r.Groups.Disagree, r.Groups.Tied)
	}
	for _, t := range r.Tests {
		fmt.Fprintf(w, "test set %s, %d queries: %d rows ask the same, %d nearly the same\n", t.Test, t.Queries, t.Exact, t.Overlap)
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "check\trows\tpolicy\tsuch as")
	for _, c := range r.Checks {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", c.Check, c.Rows, c.Policy, strings.Join(c.First[:min(len(c.First), 3)], ", "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "teacher\trows\tfalse verdicts\tright called wrong\twrong called right\tno verdict")
	list := r.Teachers
	if len(list) != 1 {
		list = append(slices.Clone(list), r.All)
	}
	for _, t := range list {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\n", t.Name, t.Rows, percent(t.Errors), percent(t.OnRight), percent(t.OnWrong), percent(t.Unjudged))
	}
	return table.Flush()
}

func percent(s evaluate.Share) string {
	if s.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %% [%.1f, %.1f] of %d", 100*s.Value(), 100*s.Low, 100*s.High, s.N)
}

func sortedKeys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	return keys
}
