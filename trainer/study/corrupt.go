package study

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"cftune/trainer/evaluate"
)

// verdictWord is a word that a critique may conclude with.
var verdictWord = regexp.MustCompile(`(?i)\b(right|wrong|correct|incorrect)\b`)

var opposite = map[string]string{"right": "wrong", "wrong": "right", "correct": "incorrect", "incorrect": "correct"}

// turned returns the critique with its conclusion turned into the opposite: the last word right, wrong, correct or
// incorrect whose exchange makes evaluate.ParseVerdict say the opposite. Everything before it stays: a corrupted
// critique contradicts its own reasons, as one does whose author slipped at the end. ok is false where there is no
// conclusion to turn.
func turned(critique string) (text string, ok bool) {
	was := evaluate.ParseVerdict(critique)
	if was == evaluate.NoVerdict {
		return critique, false
	}
	words := verdictWord.FindAllStringIndex(critique, -1)
	for i := len(words) - 1; i >= 0; i-- {
		from, to := words[i][0], words[i][1]
		text := critique[:from] + sameCase(critique[from:to], opposite[strings.ToLower(critique[from:to])]) + critique[to:]
		if now := evaluate.ParseVerdict(text); now != was && now != evaluate.NoVerdict {
			return text, true
		}
	}
	return critique, false
}

// sameCase writes a word as another is written: in capitals, with a capital, or small.
func sameCase(like, word string) string {
	switch {
	case like == strings.ToUpper(like):
		return strings.ToUpper(word)
	case like[:1] == strings.ToUpper(like[:1]):
		return strings.ToUpper(word[:1]) + word[1:]
	}
	return word
}

// corrupted returns the items with the conclusions of a share of the critiques turned. Which ones is a function of seed
// and ids, and a larger share includes the critiques of a smaller one. The share is of the critiques that have a
// conclusion; n tells how many were turned.
func corrupted(items []Item, share float64, seed uint64) (result []Item, n int) {
	result = make([]Item, len(items))
	copy(result, items)
	var able []Item
	var places []int
	for i, item := range items {
		if _, ok := turned(item.Critique); ok {
			able, places = append(able, item), append(places, i)
		}
	}
	n = int(math.Round(share * float64(len(able))))
	for at := range chosen(seed, "corrupt", able, n) {
		i := places[at]
		result[i].Critique, _ = turned(items[i].Critique)
	}
	return result, n
}

// makeNumbers gives items with a number as gold a candidate answer and a critique of it. Half of them get a flawed one:
// a number near the right one. Which ones, and how flawed, is a function of seed and id.
func makeNumbers(seed uint64, items []Item) error {
	flawed := chosen(seed, "flawed", items, len(items)/2)
	for i := range items {
		item := &items[i]
		gold, ok := new(big.Rat).SetString(strings.ReplaceAll(item.Gold, ",", ""))
		if !ok {
			return fmt.Errorf("row %s: gold %q is no number, which candidates: numbers makes answers of", item.ID, item.Gold)
		}
		right := plainNumber(gold)
		item.Label, item.Response = string(evaluate.Right), "The answer is "+right+"."
		not := ""
		given := right
		if flawed[i] {
			given = plainNumber(new(big.Rat).Add(gold, slip(seed, item.ID)))
			item.Label, item.Response = string(evaluate.Wrong), "The answer is "+given+"."
			not = "not "
		}
		reasons := strings.TrimSpace(item.Solution)
		if reasons == "" {
			reasons = "The answer is " + right + "."
		}
		item.Critique = fmt.Sprintf("%s %s is %s%s.\nConclusion: %s [END]", reasons, given, not, right, item.Label)
	}
	return nil
}

// slip is what a flawed number is off by.
func slip(seed uint64, id string) *big.Rat {
	by := []int64{1, -1, 2, 10, -10, 5}
	return big.NewRat(by[rank(seed, "slip", id)%uint64(len(by))], 1)
}

func plainNumber(x *big.Rat) string {
	if x.IsInt() {
		return x.Num().String()
	}
	f, _ := x.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}
