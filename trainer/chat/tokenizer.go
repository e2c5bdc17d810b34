package chat

// Tokenizer is what a chat template needs of the model's vocabulary. Implementations are safe for concurrent use.
type Tokenizer interface {
	// Tokenize returns the tokens of text and adds no BOS or EOS. With parseSpecial, text that spells a control token
	// becomes that token; without, it stays text.
	Tokenize(text string, parseSpecial bool) ([]int32, error)
	// TokenText returns the text of any token: a control token's as templates spell it ("<|im_end|>"), another's bytes.
	TokenText(token int32) string
	// IsControl reports whether the token is made by Tokenize only with parseSpecial.
	IsControl(token int32) bool
	// IsEOG reports whether generation ends with the token (EOS, EOT and the like).
	IsEOG(token int32) bool
	// BOS and EOS return the tokens at a text's begin and end, -1 where the vocabulary has none.
	BOS() int32
	EOS() int32
	// AddBOS reports whether the vocabulary asks for a BOS in front of every text.
	AddBOS() bool
}
