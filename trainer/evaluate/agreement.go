package evaluate

import "math"

// Agreement compares two models by what they give as next token at the same places: p is the one to be kept to, q the one
// that is looked at.
type Agreement struct {
	Tokens int
	// Sums over the tokens; see the methods.
	lossP, lossQ, kl float64
	same             int
	worst            float64
}

// Add counts a place: the logits of both, and the token that follows. The slices have the vocabulary's length.
func (a *Agreement) Add(p, q []float32, target int) {
	topP, sumP := logSumExp(p)
	topQ, sumQ := logSumExp(q)
	kl := 0.0
	for i := range p {
		logP := float64(p[i]) - sumP
		if probability := math.Exp(logP); probability != 0 { // also where it is not a number: then nothing agrees
			kl += probability * (logP - (float64(q[i]) - sumQ))
		}
	}
	a.Tokens++
	a.lossP += sumP - float64(p[target])
	a.lossQ += sumQ - float64(q[target])
	a.kl += kl
	a.worst = max(a.worst, kl)
	if topP == topQ {
		a.same++
	}
}

// logSumExp returns the place of the largest logit, the first of equals, and the log of the sum of all exponentials.
func logSumExp(x []float32) (top int, sum float64) {
	for i := range x {
		if x[i] > x[top] {
			top = i
		}
	}
	for _, v := range x {
		sum += math.Exp(float64(v - x[top]))
	}
	return top, float64(x[top]) + math.Log(sum)
}

// Losses are the mean negative log-likelihoods of the tokens that follow, in nats.
func (a *Agreement) Losses() (p, q float64) {
	return a.lossP / float64(a.Tokens), a.lossQ / float64(a.Tokens)
}

// KL is the mean divergence of q from p per token, in nats, and the largest of one token.
func (a *Agreement) KL() (mean, worst float64) { return a.kl / float64(a.Tokens), a.worst }

// Top1 is the share of places at which both find the same token most likely.
func (a *Agreement) Top1() float64 { return float64(a.same) / float64(a.Tokens) }
