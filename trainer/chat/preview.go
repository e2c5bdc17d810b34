package chat

import (
	"fmt"
	"strings"
)

// Preview shows tokens, one per line, for people: x where the token is learned, its number and its text.
func Preview(tok Tokenizer, tokens, labels []int32) string {
	var out strings.Builder
	for i, token := range tokens {
		mask := '.'
		if i < len(labels) && labels[i] != ignore {
			mask = 'x'
		}
		fmt.Fprintf(&out, "%c %6d %q\n", mask, token, tok.TokenText(token))
	}
	return out.String()
}
