package study

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/wordforms"
)

// Item is a question as the study has it: with a candidate answer, a critique of it, and the right answer, as far as the
// set has them. It is a line of the files under data/, in the format cft; Raw is not part of that and stands apart.
type Item struct {
	ID       string `json:"id"`
	Query    string `json:"query"`
	Response string `json:"response,omitempty"`
	Critique string `json:"critique,omitempty"`
	Solution string `json:"solution,omitempty"`
	Label    string `json:"label,omitempty"`
	Gold     string `json:"gold,omitempty"`
	// Raw is the candidate answer as text to learn; empty where it is Response itself.
	Raw string `json:"-"`
	// Group is what the item is an example of, such as a spelling rule.
	Group string `json:"group,omitempty"`
}

func (i Item) raw() string {
	if i.Raw != "" {
		return i.Raw
	}
	return i.Response
}

// parts are a set's items.
type parts struct {
	train, validation, test []Item
	notes                   []string // what was left out, and how much
}

// open makes or reads the items of a set.
func (s Set) open(ctx context.Context, o dataset.Options) (parts, error) {
	if s.Generator == generatorWordForms {
		return s.generate()
	}
	p, err := s.read(ctx, o)
	if err != nil {
		return p, err
	}
	if s.Candidates == candidatesNumbers {
		for _, items := range [][]Item{p.train, p.validation, p.test} {
			if err := makeNumbers(s.Seed, items); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

func (s Set) generate() (parts, error) {
	data, err := wordforms.Build(wordforms.Options{Seed: s.Seed, Train: s.Split.Train, Dev: s.Split.Validation, Test: s.Split.Test})
	if err != nil {
		return parts{}, err
	}
	convert := func(part string, from []wordforms.Item) []Item {
		items := make([]Item, len(from))
		for i, w := range from {
			items[i] = Item{
				ID: fmt.Sprintf("%s:%d", part, i+1), Query: w.Query(), Response: w.Answer(), Critique: w.Critique(),
				Solution: w.Solution(), Raw: w.NoisySolution(), Label: w.Label(), Gold: w.Gold, Group: string(w.Class),
			}
		}
		return items
	}
	return parts{
		train: convert("train", data.Train), validation: convert("validation", data.Dev), test: convert("test", data.Test),
	}, nil
}

func (s Set) read(ctx context.Context, o dataset.Options) (parts, error) {
	if s.Path == "" {
		return s.readParts(ctx, o)
	}
	items, err := readItems(ctx, Part{Path: s.Path, Format: s.Format, Fields: s.Fields}, o)
	if err != nil {
		return parts{}, err
	}
	var p parts
	items, again := distinct(items)
	if again > 0 {
		p.notes = append(p.notes, fmt.Sprintf("%d rows ask what an earlier one asks and are left out", again))
	}
	want := s.Split.Train + s.Split.Validation + s.Split.Test
	if len(items) < want {
		return parts{}, &dataset.Error{File: s.Path, Err: fmt.Errorf("it has %d different questions, split takes %d", len(items), want)}
	}
	byHash(s.Seed, "split", items)
	p.test, items = items[:s.Split.Test], items[s.Split.Test:]
	p.validation, items = items[:s.Split.Validation], items[s.Split.Validation:]
	p.train = items[:s.Split.Train]
	if rest := len(items) - s.Split.Train; rest > 0 {
		p.notes = append(p.notes, fmt.Sprintf("%d rows are not used: split takes %d", rest, want))
	}
	return p, nil
}

func (s Set) readParts(ctx context.Context, o dataset.Options) (parts, error) {
	var p parts
	for _, each := range []struct {
		from Part
		to   *[]Item
	}{{s.Train, &p.train}, {s.Validation, &p.validation}, {s.Test, &p.test}} {
		if each.from.Path == "" {
			continue
		}
		items, err := readItems(ctx, each.from, o)
		if err != nil {
			return parts{}, err
		}
		if n := each.from.Rows; n > 0 && n < len(items) {
			p.notes = append(p.notes, fmt.Sprintf("%s: the first %d of %d rows", each.from.Path, n, len(items)))
			items = items[:n]
		}
		*each.to = items
	}
	return p, nil
}

func readItems(ctx context.Context, p Part, o dataset.Options) ([]Item, error) {
	set, err := dataset.Open(ctx, []config.Source{{Path: p.Path, Format: p.Format, Fields: p.Fields, Weight: 1, Sample: 1}}, o)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	if err := set.Check(); err != nil {
		return nil, err
	}
	items := make([]Item, set.Len())
	for i := range items {
		r, err := set.Record(i)
		if err != nil {
			return nil, err
		}
		// The line, not the file: a study may be moved, and its draws go by this name.
		id := r.ID[strings.LastIndexByte(strings.SplitN(r.ID, " (", 2)[0], ':')+1:]
		items[i] = Item{ID: id, Query: r.Query, Response: r.Response, Critique: r.Critique, Solution: r.Solution, Label: r.Label, Gold: r.Gold}
	}
	return items, nil
}

// asked is what two rows have in common that ask the same: letter case and white space aside.
func asked(query string) string { return strings.ToLower(strings.Join(strings.Fields(query), " ")) }

// distinct keeps the first item of each question.
func distinct(items []Item) (kept []Item, again int) {
	seen := map[string]bool{}
	for _, i := range items {
		if seen[asked(i.Query)] {
			again++
			continue
		}
		seen[asked(i.Query)] = true
		kept = append(kept, i)
	}
	return kept, again
}

// apart refuses test questions that are trained on or validated with, in whatever set.
func apart(sets []openSet) error {
	seen := map[string]string{}
	for _, s := range sets {
		for _, i := range slices.Concat(s.train, s.validation) {
			seen[asked(i.Query)] = s.Name + ":" + i.ID
		}
	}
	for _, s := range sets {
		n, first := 0, ""
		for _, i := range s.test {
			if other, both := seen[asked(i.Query)]; both {
				if n++; n == 1 {
					first = fmt.Sprintf("row %s asks what row %s asks", i.ID, other)
				}
			}
		}
		if n > 0 {
			return fmt.Errorf("set %s: %d of %d test questions are among the training or validation rows, the first: %s", s.Name, n, len(s.test), first)
		}
	}
	return nil
}

// rank orders names at random, as a function of seed, purpose and name alone.
func rank(seed uint64, purpose, id string) uint64 {
	h := fnv.New64a()
	h.Write(binary.LittleEndian.AppendUint64(nil, seed))
	h.Write([]byte(purpose + "\x00" + id))
	x := h.Sum64() // FNV's high bits differ little between names that end alike: finish as SplitMix64 does
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func byHash(seed uint64, purpose string, items []Item) {
	slices.SortStableFunc(items, func(a, b Item) int {
		return cmp.Or(cmp.Compare(rank(seed, purpose, a.ID), rank(seed, purpose, b.ID)), strings.Compare(a.ID, b.ID))
	})
}

// chosen returns the places of the n items that come first by their rank. More items chosen with the same seed include
// those of fewer.
func chosen(seed uint64, purpose string, items []Item, n int) map[int]bool {
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank(seed, purpose, items[a].ID), rank(seed, purpose, items[b].ID)), cmp.Compare(a, b))
	})
	places := map[int]bool{}
	for _, i := range order[:n] {
		places[i] = true
	}
	return places
}
