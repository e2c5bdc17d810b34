package pack

// Example is a record after template and tokenizing.
type Example struct {
	ID     string
	Tokens []int32
	// Labels[i] is the supervised token at position i, IgnoreTarget where there is no loss. Unshifted: normally
	// Labels[i] is Tokens[i] or IgnoreTarget.
	Labels []int32
	// Weight multiplies the loss of every target.
	Weight float32
	// Objective is the layout that the record was rendered in: sft, cft or tokenized.
	Objective string
}

// Batch is one pack: a micro-batch in the flat arrays that the engine takes. All slices have the same length.
type Batch struct {
	Tokens       []int32
	Targets      []int32 // already shifted; IgnoreTarget where there is none
	Positions    []int32 // rotary position of each token within its example
	VisibleUntil []int32 // query i sees key j when j <= i and i < VisibleUntil[j]
	Weights      []float32
}

// IgnoreTarget marks a position without a target.
const IgnoreTarget = -100
