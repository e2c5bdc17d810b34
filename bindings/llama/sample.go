package llama

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/bindings/engine"
)

// sampler draws an answer's tokens. Filters come in llama.cpp's order: penalties, then mirostat, or top-k, typical, top-p
// and the temperature.
type sampler struct {
	o       PredictOptions
	rng     *rand.Rand
	bias    map[int32]float64
	newline int32
	ends    []int32 // tokens that IgnoreEOS forbids
	recent  []int32 // prompt and answer
	mu      float64 // mirostat's aim for the next token's surprise
}

func newSampler(o PredictOptions, model ModelOptions, vocab *engine.Vocab, prompt []int32) (*sampler, error) {
	for _, f := range []struct {
		name  string
		value float32
		ok    bool
	}{
		{"SetTemperature", o.Temperature, o.Temperature >= 0}, {"SetTopP", o.TopP, o.TopP > 0}, {"SetTypicalP", o.TypicalP, o.TypicalP > 0},
		{"SetPenalty", o.Penalty, o.Penalty > 0}, {"SetTopK", float32(o.TopK), o.TopK >= 0}, {"SetRepeat", float32(o.Repeat), o.Repeat >= -1},
	} {
		if !f.ok || math.IsInf(float64(f.value), 0) {
			return nil, fmt.Errorf("llama: %s(%v) is out of its range", f.name, f.value)
		}
	}
	s := &sampler{o: o, newline: vocab.Info().NL, recent: slices.Clone(prompt), mu: 2 * float64(o.MirostatTAU)}
	var err error
	if s.bias, err = parseBias(o.LogitBias, vocab.Info().Tokens); err != nil {
		return nil, err
	}
	if o.IgnoreEOS {
		for token := range int32(vocab.Info().Tokens) {
			if vocab.IsEOG(token) {
				s.ends = append(s.ends, token)
			}
		}
	}
	seed := int64(o.Seed)
	if seed == -1 {
		seed = int64(model.Seed)
	}
	if seed == 0 && o.Seed == -1 {
		seed = time.Now().UnixNano()
	}
	s.rng = rand.New(rand.NewPCG(uint64(seed), 0x6c6c616d61))
	return s, nil
}

// parseBias reads "15043+1.5": a token's number, a sign, a number.
func parseBias(text string, tokens int) (map[int32]float64, error) {
	if text == "" {
		return nil, nil
	}
	at := strings.IndexAny(text, "+-")
	if at > 0 {
		token, err := strconv.ParseInt(text[:at], 10, 32)
		bias, err2 := strconv.ParseFloat(text[at:], 64)
		if err == nil && err2 == nil && token >= 0 && token < int64(tokens) && !math.IsNaN(bias) {
			return map[int32]float64{int32(token): bias}, nil
		}
	}
	return nil, fmt.Errorf("llama: SetLogitBias(%q): must be a token's number below %d, a sign and a number, as in 15043+1.5", text, tokens)
}

type candidate struct {
	id    int32
	logit float64
	p     float64
}

// draw chooses the next token. logits are changed.
func (s *sampler) draw(logits []float32) int32 {
	s.adjust(logits)
	best := 0
	for i := range logits {
		if logits[i] > logits[best] {
			best = i
		}
	}
	if s.o.Temperature == 0 {
		return s.took(int32(best))
	}
	list := make([]candidate, 0, len(logits))
	for i, x := range logits {
		if !math.IsInf(float64(x), -1) {
			list = append(list, candidate{id: int32(i), logit: float64(x)})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int { return cmp.Or(cmp.Compare(b.logit, a.logit), cmp.Compare(a.id, b.id)) })
	if s.o.Mirostat > 0 {
		return s.took(s.mirostat(list))
	}
	if s.o.TopK > 0 {
		list = list[:min(s.o.TopK, len(list))]
	}
	if s.o.TypicalP < 1 {
		list = typical(list, float64(s.o.TypicalP))
	}
	if s.o.TopP < 1 {
		softmax(list, 1)
		list = shortest(list, float64(s.o.TopP))
	}
	softmax(list, float64(s.o.Temperature))
	return s.took(s.choose(list).id)
}

func (s *sampler) took(token int32) int32 {
	s.recent = append(s.recent, token)
	return token
}

// adjust applies bias and penalties, as llama.cpp does.
func (s *sampler) adjust(logits []float32) {
	for token, bias := range s.bias {
		logits[token] += float32(bias)
	}
	for _, token := range s.ends {
		logits[token] = float32(math.Inf(-1))
	}
	window := s.o.Repeat
	if window < 0 || window > len(s.recent) {
		window = len(s.recent)
	}
	counts := map[int32]int{}
	for _, token := range s.recent[len(s.recent)-window:] {
		counts[token]++
	}
	for token, n := range counts {
		if token == s.newline && !s.o.PenalizeNL {
			continue
		}
		if logits[token] > 0 {
			logits[token] /= s.o.Penalty
		} else {
			logits[token] *= s.o.Penalty
		}
		logits[token] -= float32(n)*s.o.FrequencyPenalty + s.o.PresencePenalty
	}
}

// softmax sets the probabilities of candidates in falling order of their logits.
func softmax(list []candidate, temperature float64) {
	sum, top := 0.0, math.Inf(-1)
	for _, c := range list {
		top = max(top, c.logit)
	}
	for i := range list {
		list[i].p = math.Exp((list[i].logit - top) / temperature)
		sum += list[i].p
	}
	for i := range list {
		list[i].p /= sum
	}
}

// shortest is the shortest beginning whose probabilities reach p.
func shortest(list []candidate, p float64) []candidate {
	sum := 0.0
	for i := range list {
		if sum += list[i].p; sum >= p {
			return list[:i+1]
		}
	}
	return list
}

// typical keeps the candidates whose surprise is nearest to the expected one, until their probabilities reach p.
func typical(list []candidate, p float64) []candidate {
	softmax(list, 1)
	entropy := 0.0
	for _, c := range list {
		if c.p > 0 {
			entropy -= c.p * math.Log(c.p)
		}
	}
	away := func(c candidate) float64 { return math.Abs(-math.Log(max(c.p, math.SmallestNonzeroFloat64)) - entropy) }
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(away(a), away(b)) })
	kept := shortest(list, p)
	slices.SortFunc(kept, func(a, b candidate) int { return cmp.Or(cmp.Compare(b.logit, a.logit), cmp.Compare(a.id, b.id)) })
	return kept
}

func (s *sampler) choose(list []candidate) candidate {
	point := s.rng.Float64()
	for _, c := range list {
		if point -= c.p; point < 0 {
			return c
		}
	}
	return list[len(list)-1]
}

// mirostatCandidates is how many candidates version 1 estimates Zipf's exponent from.
const mirostatCandidates = 100

// mirostat draws and moves its aim by how surprising the token was.
func (s *sampler) mirostat(list []candidate) int32 {
	softmax(list, float64(s.o.Temperature))
	if s.o.Mirostat == 1 {
		list = list[:s.mirostatSize(list)]
	} else {
		n := 1
		for n < len(list) && -math.Log2(list[n].p) <= s.mu {
			n++
		}
		list = list[:n]
	}
	sum := 0.0
	for _, c := range list {
		sum += c.p
	}
	for i := range list {
		list[i].p /= sum
	}
	c := s.choose(list)
	s.mu -= float64(s.o.MirostatETA) * (-math.Log2(c.p) - float64(s.o.MirostatTAU))
	return c.id
}

// mirostatSize is the k of version 1 (Basu et al. 2021, algorithm 1).
func (s *sampler) mirostatSize(list []candidate) int {
	above, below := 0.0, 0.0
	for i := range min(mirostatCandidates, len(list)) - 1 {
		t, b := math.Log(float64(i+2)/float64(i+1)), math.Log(list[i].p/list[i+1].p)
		above += t * b
		below += t * t
	}
	if below == 0 {
		return 1
	}
	exponent := above / below
	epsilon := exponent - 1
	k := math.Pow(epsilon*math.Pow(2, s.mu)/(1-math.Pow(float64(len(list)), -epsilon)), 1/exponent)
	if math.IsNaN(k) || k < 1 {
		return 1
	}
	return int(min(k, float64(len(list))))
}
