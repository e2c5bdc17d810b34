package trainer

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

// DataStats is what Stats found out about a run's data.
type DataStats struct {
	Records    int              `json:"records"`
	Files      []FileStats      `json:"files"`
	Objectives []ObjectiveStats `json:"objectives"`
	// Duplicates are records that ask and show what an earlier one does; their targets may differ.
	Duplicates Found `json:"duplicates"`
	// Repeats are records that are the same as an earlier one in every text.
	Repeats Found `json:"repeats"`
	// Overlap are records that ask what a held-out one asks.
	Overlap Found `json:"overlap"`
	HeldOut int   `json:"held_out"` // records; 0 if there is no validation
	// Problems are what training would refuse, in words.
	Problems []string `json:"problems,omitempty"`
}

// FileStats counts the records of a file.
type FileStats struct {
	File    string `json:"file"`
	Records int    `json:"records"`
}

// ObjectiveStats is about all records as examples of one objective; those with problems are not among the examples.
type ObjectiveStats struct {
	Objective string `json:"objective"`
	Examples  int    `json:"examples"`
	Refused   int    `json:"refused"` // records that cannot be examples
	OverLong  int    `json:"over_long"`
	AllMasked int    `json:"all_masked"`
	// Tokens are positions in a pack, before any cut; Targets the learned ones.
	Tokens  Lengths `json:"tokens"`
	Targets Lengths `json:"targets"`
}

// TargetShare is the share of positions that have a target.
func (o ObjectiveStats) TargetShare() float64 {
	if o.Tokens.Sum == 0 {
		return 0
	}
	return float64(o.Targets.Sum) / float64(o.Tokens.Sum)
}

// Lengths describe a distribution of lengths. Its quantiles are observed values.
type Lengths struct {
	Sum       int64    `json:"sum"`
	Mean      float64  `json:"mean"`
	Min       int      `json:"min"`
	P50       int      `json:"p50"`
	P90       int      `json:"p90"`
	P99       int      `json:"p99"`
	Max       int      `json:"max"`
	Histogram []Bucket `json:"histogram"`
}

// Bucket counts lengths from From to To, both included.
type Bucket struct {
	From  int `json:"from"`
	To    int `json:"to"`
	Count int `json:"count"`
}

// Found counts records and names the first ones.
type Found struct {
	Count int      `json:"count"`
	First []string `json:"first,omitempty"`
}

func (f *Found) add(id string) {
	f.Count++
	if len(f.First) < maxNamed {
		f.First = append(f.First, id)
	}
}

// Stats goes over all records under every objective of the configuration, and reports faults instead of ending with them.
func Stats(ctx context.Context, o Options) (DataStats, error) {
	t := newTrainer(o)
	defer t.Close()
	if err := t.openData(ctx); err != nil {
		return DataStats{}, err
	}
	s := DataStats{Records: t.set.Len()}
	if err := t.countRecords(ctx, &s); err != nil {
		return DataStats{}, err
	}
	names := objective.Objectives(t.run.Objective.Stages...)
	for _, name := range names {
		stats, problems, err := t.countExamples(ctx, name)
		if err != nil {
			return DataStats{}, err
		}
		s.Objectives = append(s.Objectives, stats)
		for _, p := range problems {
			if len(names) > 1 && !strings.HasPrefix(p, " ") {
				p = name + ": " + p
			}
			s.Problems = append(s.Problems, p)
		}
	}
	if n := s.Overlap.Count; n > 0 && t.run.Data.Audit {
		s.Problems = append(s.Problems, overlapText(n, s.Records, s.Overlap.First))
	}
	return s, nil
}

// countRecords counts files, duplicates and the overlap with the held-out records, one record after the other.
func (t *Trainer) countRecords(ctx context.Context, s *DataStats) error {
	held, err := heldKeys(ctx, t.heldSet)
	if err != nil {
		return err
	}
	s.HeldOut = len(held)
	asked, whole := map[uint64]struct{}{}, map[uint64]struct{}{}
	names, records := t.set.Files()
	for i, name := range names {
		s.Files = append(s.Files, FileStats{File: name, Records: records[i]})
	}
	look := newLookout(t.options.Looking, t.set.Len())
	for i := range t.set.Len() {
		if err := ctx.Err(); err != nil {
			return err
		}
		look.looked()
		record, err := t.set.Record(i)
		if err != nil {
			continue // counted with the examples
		}
		key, all := promptKey(record), recordKey(record)
		if _, is := held[key]; is {
			s.Overlap.add(record.ID)
		}
		if _, is := whole[all]; is {
			s.Repeats.add(record.ID)
		} else if _, is := asked[key]; is {
			s.Duplicates.add(record.ID)
		}
		asked[key], whole[all] = struct{}{}, struct{}{}
	}
	return nil
}

// countExamples encodes all records under an objective.
func (t *Trainer) countExamples(ctx context.Context, name string) (ObjectiveStats, []string, error) {
	n := t.set.Len()
	lengths, targets := make([]int, n), make([]int, n)
	var mu sync.Mutex
	var faults []fault
	e := *t.encoder
	e.run.Data.OverLong = "drop" // so that long ones have a length
	stats := ObjectiveStats{Objective: name}
	look := newLookout(t.options.Looking, n)
	err := parallel(ctx, n, func(i int) {
		defer look.looked()
		made, err := e.encode(i, name)
		if err == nil {
			lengths[i], targets[i] = made.length, pack.NumTargets(made.example) // of the whole
		}
		long := err == nil && made.outcome == dropped
		if err == nil && !long {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if long {
			stats.OverLong++
			if t.run.Data.OverLong != "refuse" {
				return
			}
			err = fmt.Errorf("%w: example %s", errTooLong, made.example.ID)
		}
		faults = append(faults, fault{i, made.example.ID, made.length, err})
	})
	if err != nil {
		return ObjectiveStats{}, nil, err
	}
	for i := range lengths {
		if lengths[i] > 0 {
			stats.Examples++
		}
	}
	stats.Refused = n - stats.Examples
	stats.AllMasked = countMasked(faults)
	stats.Tokens, stats.Targets = describe(lengths), describe(targets)
	var problems []string
	if data, ok := faultsError(faults, n, t.run.Train.SeqLen).(*DataError); ok {
		problems = data.Problems
	}
	return stats, problems, nil
}

// histogramBuckets is how finely lengths are shown.
const histogramBuckets = 12

// describe leaves zeros out: they are records without an example. It sorts the lengths.
func describe(lengths []int) Lengths {
	slices.Sort(lengths)
	first, _ := slices.BinarySearch(lengths, 1)
	lengths = lengths[first:]
	if len(lengths) == 0 {
		return Lengths{}
	}
	at := func(q float64) int { return lengths[int(q*float64(len(lengths)-1)+0.5)] }
	l := Lengths{Min: lengths[0], P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: lengths[len(lengths)-1]}
	width := (l.Max-l.Min)/histogramBuckets + 1
	counts := map[int]int{}
	for _, n := range lengths {
		l.Sum += int64(n)
		counts[(n-l.Min)/width]++
	}
	l.Mean = float64(l.Sum) / float64(len(lengths))
	last := slices.Max(slices.Collect(maps.Keys(counts)))
	for i := range last + 1 {
		l.Histogram = append(l.Histogram, Bucket{From: l.Min + i*width, To: l.Min + (i+1)*width - 1, Count: counts[i]})
	}
	return l
}

// keySeed makes keys of records comparable within a process.
var keySeed = maphash.MakeSeed()

// promptKey is a hash of what a record asks and shows before anything is learned, letter case and white space aside: the
// same for the same question with the same candidate answer, whatever the objective. A tokenized record's is of all its
// tokens.
func promptKey(r dataset.Record) uint64 {
	var h maphash.Hash
	h.SetSeed(keySeed)
	part := func(text string) {
		for word := range strings.FieldsSeq(text) {
			h.WriteString(strings.ToLower(word))
			h.WriteByte(' ')
		}
		h.WriteByte(0)
	}
	switch {
	case r.InputIDs != nil: // whole: what of it is a question nobody can tell
		for _, token := range r.InputIDs {
			maphash.WriteComparable(&h, token)
		}
	case len(r.Messages) > 0:
		for _, m := range r.Messages {
			if m.Role == dataset.RoleAssistant {
				break
			}
			part(m.Role)
			part(m.Content)
		}
	default:
		part(r.Query)
		part(r.Response)
	}
	return h.Sum64()
}

// recordKey is a hash of all that can be learned from a record.
func recordKey(r dataset.Record) uint64 {
	r.ID = ""
	return maphash.String(keySeed, fmt.Sprintf("%q", []any{r.Query, r.Response, r.Critique, r.Solution, r.Messages, r.InputIDs, r.Labels}))
}

// heldKeys are the prompt keys of the held-out records; nil without any.
func heldKeys(ctx context.Context, set *dataset.Set) (map[uint64]struct{}, error) {
	if set == nil {
		return nil, nil
	}
	keys := make(map[uint64]struct{}, set.Len())
	for i := range set.Len() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		record, err := set.Record(i)
		if err != nil {
			return nil, &DataError{Problems: []string{"validation: " + err.Error()}}
		}
		keys[promptKey(record)] = struct{}{}
	}
	return keys, nil
}

func overlapText(n, of int, first []string) string {
	return fmt.Sprintf("%d of %d records ask what a held-out record asks, so that the validation loss would flatter: %s", n, of, named(first, n))
}

// Convert calls write for all records of a run's first epoch, in their order, but those that data.over_long drops: with the
// record's examples (several if it is split) and, unless the record is tokenized, the conversation that they are of.
func Convert(ctx context.Context, o Options, write func([]pack.Example, *objective.Conversation) error) error {
	t := newTrainer(o)
	defer t.Close()
	if err := t.openData(ctx); err != nil {
		return err
	}
	p := newPlanner(t.encoder)
	p.looking = o.Looking
	if _, err := p.plan(ctx); err != nil {
		return err // all that is wrong at once, and before anything is written
	}
	g := t.grouper()
	for i := range g.records {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := g.pickAt(dataset.Cursor{Index: i})
		e, err := t.encoder.encode(k.record, k.objective)
		if err != nil {
			return &DataError{Problems: []string{words(err)}}
		}
		if len(e.parts) == 0 {
			continue
		}
		if err := write(e.parts, e.conversation); err != nil {
			return err
		}
	}
	return nil
}

// ConfigObjectives lists the objectives that a configuration trains under.
func ConfigObjectives(run config.Run) []string { return objective.Objectives(run.Objective.Stages...) }
