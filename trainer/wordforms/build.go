package wordforms

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
)

// Options say how much data to make.
type Options struct {
	Seed uint64
	// Train, Dev and Test are numbers of items. Half the items of each part have a right answer.
	Train, Dev, Test int
}

// Data is the data set: no word of one part, nor any of its forms, is in another.
type Data struct {
	Train, Dev, Test []Item
}

// Build makes the data set. Test and development have one question per word; in training a word has several only when
// there are more items than words. It fails when there are too few words.
func Build(o Options) (Data, error) {
	if min(o.Train, o.Dev, o.Test) < 0 {
		return Data{}, fmt.Errorf("make word forms: a negative number of items: %d, %d and %d", o.Train, o.Dev, o.Test)
	}
	words := lexicon()
	rng := rand.New(rand.NewPCG(o.Seed, 0x776f726473)) // "words"
	known := map[string]string{}
	for _, w := range words {
		for _, s := range w.spellings() {
			known[s] = w.Text
		}
	}
	rng.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
	if o.Test+o.Dev >= len(words) {
		return Data{}, fmt.Errorf("make word forms: %d test and %d development items leave no word of %d to train on", o.Test, o.Dev, len(words))
	}
	m := maker{rng: rng, known: known}
	var d Data
	d.Test = m.items(words[:o.Test], o.Test)
	d.Dev = m.items(words[o.Test:o.Test+o.Dev], o.Dev)
	rest := words[o.Test+o.Dev:]
	if most := countForms(rest); o.Train > most {
		return Data{}, fmt.Errorf("make word forms: %d training items asked for, but the words left have %d forms", o.Train, most)
	}
	d.Train = m.items(rest, o.Train)
	return d, nil
}

func countForms(words []Word) int {
	n := 0
	for _, w := range words {
		n += len(w.Tasks())
	}
	return n
}

type maker struct {
	rng   *rand.Rand
	known map[string]string // spelling -> word
}

// items asks for n forms of the words: each word once before any word is asked for twice.
func (m maker) items(words []Word, n int) []Item {
	type ask struct {
		word  Word
		task  Task
		round int
	}
	var asks []ask
	for _, w := range words {
		tasks := w.Tasks()
		m.rng.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
		for round, t := range tasks {
			asks = append(asks, ask{w, t, round})
		}
	}
	slices.SortStableFunc(asks, func(a, b ask) int { return cmp.Compare(a.round, b.round) })
	asks = asks[:n]
	right := make([]bool, n)
	for i := range right {
		right[i] = i%2 == 0
	}
	m.rng.Shuffle(n, func(i, j int) { right[i], right[j] = right[j], right[i] })
	items := make([]Item, n)
	for i, a := range asks {
		items[i] = m.item(a.word, a.task, right[i])
	}
	m.rng.Shuffle(n, func(i, j int) { items[i], items[j] = items[j], items[i] })
	return items
}

func (m maker) item(w Word, t Task, right bool) Item {
	d := w.forms[t]
	item := Item{Word: w.Text, Task: t, Class: d.class, Gold: d.form, Form: d.form, rule: d.rule}
	h := fnv.New32a()
	h.Write([]byte(w.Text))
	item.style = int(h.Sum32()+uint32(t)) % len(phrasings)
	if right {
		return item
	}
	var wrong []string
	for _, form := range flaws(w, t) {
		if m.known[form] == "" {
			wrong = append(wrong, form)
		}
	}
	if len(wrong) == 0 {
		panic(fmt.Sprintf("wordforms: no wrong form for the %s of %s", t, w.Text))
	}
	item.Form = wrong[m.rng.IntN(len(wrong))]
	return item
}
