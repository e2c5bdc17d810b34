package main

import (
	"fmt"
	"math"
	"math/rand/v2"

	"cftune/trainer/pack"
)

// shape is a query of One-Shot-CFT with what was written about it: characters, as quantiles at 0, 5 ... 95, 99 and
// 100 %. They were counted over the released rows: DSR are problems of DeepScaleR, BBEH questions of BIG-Bench Extra Hard.
type shape struct {
	name     string
	query    int
	answer   [quantiles]int
	critique [quantiles]int
	tokens   perToken
}

const quantiles = 22

// perToken is characters per token of SmolLM2's tokenizer.
type perToken struct{ query, answer, critique float64 }

// Counted over MR-GSM8K (problems, models' solutions, critiques) and Prometheus' feedback sets.
var (
	mathText = perToken{3.93, 2.76, 3.90}
	prose    = perToken{4.79, 4.80, 5.44}
)

// The chat template with the critique prompt's words: before the query, between query and answer, after the answer.
const beforeQuery, afterQuery, afterAnswer = 41, 3, 7

// shapes are the queries of the release. "all" has the lengths of all its rows, under the longest of the problems.
var shapes = []shape{
	{
		name: "all", query: 373, tokens: mathText,
		answer:   [quantiles]int{13, 399, 809, 960, 1074, 1189, 1265, 1327, 1364, 1416, 1502, 1589, 1675, 1800, 1957, 2281, 2536, 2813, 3991, 5420, 13553, 18036},
		critique: [quantiles]int{539, 793, 855, 907, 956, 1013, 1092, 1215, 1351, 1443, 1522, 1604, 1702, 1859, 2469, 3218, 3692, 4109, 4691, 8135, 17120, 24187},
	},
	{
		name: "DSR-p0", query: 356, tokens: mathText,
		answer:   [quantiles]int{120, 956, 1113, 1221, 1235, 1269, 1303, 1335, 1364, 1382, 1392, 1435, 1474, 1524, 1568, 1594, 1668, 2023, 2670, 3761, 5314, 5314},
		critique: [quantiles]int{539, 769, 829, 873, 919, 962, 1015, 1065, 1165, 1279, 1395, 1443, 1501, 1554, 1623, 1695, 1808, 2656, 3173, 3916, 9114, 15004},
	},
	{
		name: "DSR-p1", query: 60, tokens: mathText,
		answer:   [quantiles]int{384, 751, 942, 1013, 1048, 1162, 1240, 1282, 1311, 1334, 1348, 1454, 1536, 1583, 1678, 1792, 2993, 3377, 3991, 4692, 5767, 5767},
		critique: [quantiles]int{692, 750, 781, 813, 833, 846, 869, 887, 903, 943, 1011, 1136, 1216, 1284, 1361, 1437, 1494, 1560, 1615, 1682, 1852, 1981},
	},
	{
		name: "DSR-p3", query: 373, tokens: mathText,
		answer:   [quantiles]int{320, 819, 855, 1020, 1085, 1246, 1402, 1671, 1742, 1815, 1898, 1942, 2002, 2165, 2348, 2539, 2813, 3745, 5321, 7200, 15499, 15499},
		critique: [quantiles]int{648, 853, 910, 953, 994, 1035, 1150, 1275, 1398, 1485, 1566, 1652, 1756, 1872, 2051, 2413, 2984, 3764, 6984, 13851, 18844, 24187},
	},
	{
		name: "BBEH", query: 825, tokens: prose,
		answer:   [quantiles]int{13, 152, 245, 327, 405, 471, 656, 782, 862, 1010, 1250, 1525, 1698, 1987, 2389, 2537, 2651, 2811, 7783, 13115, 15838, 18036},
		critique: [quantiles]int{749, 1079, 1447, 3363, 3518, 3634, 3720, 3817, 3896, 3982, 4122, 4245, 4333, 4454, 4569, 4719, 4930, 5267, 6119, 9984, 19747, 20540},
	},
}

// at is the length at a quantile in [0, 1], in tokens.
func at(table [quantiles]int, quantile, perToken float64) int {
	fraction := func(i int) float64 {
		switch i {
		case quantiles - 1:
			return 1
		case quantiles - 2:
			return 0.99
		}
		return float64(i) / 20
	}
	low := 0
	for low < quantiles-2 && fraction(low+1) <= quantile {
		low++
	}
	share := (quantile - fraction(low)) / (fraction(low+1) - fraction(low))
	return inTokens(float64(table[low])+share*float64(table[low+1]-table[low]), perToken)
}

func inTokens(chars, perToken float64) int { return max(1, int(math.Round(chars/perToken))) }

// rows makes the examples of one query: answers times critiques of random tokens. Their lengths are evenly spread over
// the quantiles, so that a small sample has the distribution's form, in a drawn order. Only critiques are supervised.
func (s shape) rows(answers, critiques, vocab int) []pack.Example {
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(n int) []int32 {
		tokens := make([]int32, n)
		for i := range tokens {
			tokens[i] = int32(rng.IntN(vocab))
		}
		return tokens
	}
	join := func(parts ...[]int32) []int32 {
		var all []int32
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	start := join(text(beforeQuery), text(inTokens(float64(s.query), s.tokens.query)), text(afterQuery))
	end := text(afterAnswer)
	spread := func(n int) func(i int) float64 {
		order := rng.Perm(n)
		return func(i int) float64 { return (float64(order[i]) + 0.5) / float64(n) }
	}
	answerAt, critiqueAt := spread(answers), spread(answers*critiques)
	var examples []pack.Example
	for a := range answers {
		prompt := join(start, text(at(s.answer, answerAt(a), s.tokens.answer)), end)
		for c := range critiques {
			target := text(at(s.critique, critiqueAt(a*critiques+c), s.tokens.critique))
			e := pack.Example{ID: fmt.Sprintf("answer %d, critique %d", a+1, c+1), Tokens: join(prompt, target), Weight: 1}
			for i, token := range e.Tokens {
				if i < len(prompt) {
					token = pack.IgnoreTarget
				}
				e.Labels = append(e.Labels, token)
			}
			examples = append(examples, e)
		}
	}
	return examples
}
