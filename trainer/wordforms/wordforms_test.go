package wordforms

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNoSpellingBelongsToTwoWords(t *testing.T) {
	owner := map[string]string{}
	for _, w := range lexicon() {
		seen := map[string]bool{}
		for _, s := range w.spellings() {
			if seen[s] {
				continue // sheep: one word's forms may be alike
			}
			seen[s] = true
			assert.Empty(t, owner[s], "%q belongs to %s too", s, w.Text)
			owner[s] = w.Text
			assert.Regexp(t, "^[a-z]+$", s)
		}
	}
	assert.Greater(t, len(owner), 2500)
}

// Spot checks of every class, and of words that look like another class.
func TestForms(t *testing.T) {
	words := map[string]Word{}
	for _, w := range lexicon() {
		words[w.Text] = w
	}
	tests := []struct {
		word  string
		task  Task
		form  string
		class Class
		rule  string
	}{
		{"walk", Past, "walked", Plain, "add ed"},
		{"visit", Past, "visited", Plain, "add ed"}, // stress on the first syllable
		{"fix", Past, "fixed", Plain, "add ed"},
		{"push", Past, "pushed", Plain, "add ed"},
		{"bake", Past, "baked", AfterE, "after e add only d"},
		{"agree", Past, "agreed", AfterE, "after e add only d"},
		{"carry", Past, "carried", ConsY, "y becomes i, add ed"},
		{"enjoy", Past, "enjoyed", VowelY, "keep y, add ed"},
		{"stop", Past, "stopped", Doubled, "double p, add ed"},
		{"prefer", Past, "preferred", Doubled, "double r, add ed"},
		{"go", Past, "went", Irregular, "irregular"},
		{"cat", Plural, "cats", Plain, "add s"},
		{"bottle", Plural, "bottles", Plain, "add s"},
		{"piano", Plural, "pianos", Plain, "add s"},
		{"box", Plural, "boxes", Sibilant, "after x add es"},
		{"church", Plural, "churches", Sibilant, "after ch add es"},
		{"baby", Plural, "babies", ConsY, "y becomes i, add es"},
		{"boy", Plural, "boys", VowelY, "keep y, add s"},
		{"potato", Plural, "potatoes", OES, "after o add es"},
		{"knife", Plural, "knives", VES, "f becomes v, add es"},
		{"thief", Plural, "thieves", VES, "f becomes v, add es"},
		{"quiz", Plural, "quizzes", Doubled, "double z, add es"},
		{"sheep", Plural, "sheep", Irregular, "irregular"},
		{"crisis", Plural, "crises", Irregular, "irregular"},
		{"tall", Comparative, "taller", Plain, "add er"},
		{"nice", Comparative, "nicer", AfterE, "after e add only r"},
		{"nice", Superlative, "nicest", AfterE, "after e add only st"},
		{"happy", Superlative, "happiest", ConsY, "y becomes i, add est"},
		{"big", Comparative, "bigger", Doubled, "double g, add er"},
		{"good", Superlative, "best", Irregular, "irregular"},
	}
	for _, tt := range tests {
		d, ok := words[tt.word].forms[tt.task]
		require.True(t, ok, tt.word)
		assert.Equal(t, derivation{tt.form, tt.class, tt.rule}, d, tt.word)
	}
}

func TestFlaws(t *testing.T) {
	words := map[string]Word{}
	for _, w := range lexicon() {
		words[w.Text] = w
	}
	for _, tt := range []struct {
		word string
		task Task
		want []string
	}{
		{"walk", Past, []string{"walkied", "walkked"}},
		{"push", Past, []string{"pushied"}},
		{"bake", Past, []string{"bakied", "bakked", "bakeed"}},
		{"carry", Past, []string{"carryed", "carred"}},
		{"enjoy", Past, []string{"enjoied", "enjoyyed"}},
		{"stop", Past, []string{"stoped", "stopied"}},
		{"go", Past, []string{"goed", "wented"}},
		{"cat", Plural, []string{"cates", "caties"}},
		{"bottle", Plural, []string{"bottlees", "bottlies"}},
		{"box", Plural, []string{"boxs", "boxies"}},
		{"baby", Plural, []string{"babys", "babes"}},
		{"boy", Plural, []string{"boies", "boyyes"}},
		{"knife", Plural, []string{"knifes", "knifes"}},
		{"wolf", Plural, []string{"wolfs", "wolfes"}},
		{"good", Comparative, []string{"gooder", "betterer"}},
	} {
		assert.Equal(t, tt.want, flaws(words[tt.word], tt.task), tt.word)
	}
	for _, w := range lexicon() {
		for _, task := range w.Tasks() {
			gold, _ := w.Form(task)
			assert.NotContains(t, flaws(w, task), gold, w.Text)
		}
	}
}

func TestTexts(t *testing.T) {
	i := Item{Word: "carry", Task: Past, Class: ConsY, Gold: "carried", Form: "carryed", rule: "y becomes i, add ed"}
	assert.Equal(t, `What is the past tense of "carry"?`, i.Query())
	assert.Equal(t, "carryed", i.Answer())
	assert.Equal(t, `The past tense of "carry" is "carried".`, i.Solution())
	assert.Equal(t, `The past tense of "carry" is "carryed".`, i.NoisySolution())
	assert.Equal(t, "The past tense of \"carry\" is \"carried\": y becomes i, add ed. \"carryed\" is not \"carried\".\nConclusion: wrong [END]", i.Critique())
	i.Form = "carried"
	assert.Equal(t, "The past tense of \"carry\" is \"carried\": y becomes i, add ed. \"carried\" is \"carried\".\nConclusion: right [END]", i.Critique())
}

func build(t *testing.T, o Options) Data {
	t.Helper()
	d, err := Build(o)
	require.NoError(t, err)
	return d
}

func TestBuildDividesWords(t *testing.T) {
	o := Options{Seed: 3, Train: 700, Dev: 100, Test: 200}
	d := build(t, o)
	parts := map[string][]Item{"train": d.Train, "dev": d.Dev, "test": d.Test}
	assert.Len(t, d.Train, o.Train)
	assert.Len(t, d.Dev, o.Dev)
	assert.Len(t, d.Test, o.Test)

	forms := map[string][]string{}
	for _, w := range lexicon() {
		forms[w.Text] = w.spellings()
	}
	part := map[string]string{} // spelling -> part that it is in, as a word, as a form or as a flawed form
	for name, items := range parts {
		for _, i := range items {
			for _, s := range append([]string{i.Form}, forms[i.Word]...) {
				if other := part[s]; other != "" {
					assert.Equal(t, other, name, "%q is in two parts", s)
				}
				part[s] = name
			}
		}
	}
	for name, items := range parts {
		right := 0
		asked := map[string]bool{}
		styles := map[int]int{}
		for _, i := range items {
			if i.Right() {
				right++
			}
			styles[i.style]++
			assert.False(t, asked[i.Query()], i.Query())
			asked[i.Query()] = true
		}
		assert.Equal(t, len(items)/2, right, "labels of %s are balanced", name)
		assert.Len(t, styles, len(phrasings), name)
	}
}

func TestBuildIsAFunctionOfItsOptions(t *testing.T) {
	o := Options{Seed: 3, Train: 50, Dev: 10, Test: 20}
	assert.Equal(t, build(t, o), build(t, o))
	other := o
	other.Seed++
	assert.NotEqual(t, build(t, o).Test, build(t, other).Test)
	more := o
	more.Train = 60
	assert.Equal(t, build(t, o).Test, build(t, more).Test, "the test part does not depend on how much is trained on")
}

func TestBuildRefuses(t *testing.T) {
	_, err := Build(Options{Train: 10, Dev: 10, Test: 10_000})
	assert.ErrorContains(t, err, "leave no word")
	_, err = Build(Options{Train: 10_000, Dev: 10, Test: 10})
	assert.ErrorContains(t, err, "10000 training items asked for, but the words left have")
	_, err = Build(Options{Train: -1})
	assert.ErrorContains(t, err, "negative")
}

func TestEveryClassIsListed(t *testing.T) {
	for _, w := range lexicon() {
		for _, task := range w.Tasks() {
			_, class := w.Form(task)
			assert.True(t, slices.Contains(Classes(), class), class)
		}
	}
}
