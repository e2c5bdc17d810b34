package engine

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStopStrings(t *testing.T) {
	tests := []struct {
		name    string
		stops   []string
		pieces  []string
		want    string
		stopped bool
	}{
		{"none asked for", nil, []string{"a", "b"}, "ab", false},
		{"in one piece", []string{"END"}, []string{"all ", "END of it"}, "all ", true},
		{"over pieces", []string{"\n\nQ:"}, []string{"yes\n", "\n", "Q", ": next"}, "yes", true},
		{"at the very start", []string{"no"}, []string{"n", "o"}, "", true},
		{"begins but goes on otherwise", []string{"\n\nQ:"}, []string{"a\n", "\n", "Qui"}, "a\n\nQui", false},
		{"begins at the end of the answer", []string{"END"}, []string{"the E", "N"}, "the EN", false},
		{"the earliest of two", []string{"zz", "b"}, []string{"abzz"}, "a", true},
		{"overlaps itself", []string{"aab"}, []string{"a", "a", "a", "b"}, "a", true},
		{"inside a character's bytes", []string{"é!"}, []string{"caf\xc3", "\xa9", "!", "x"}, "caf", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := stopText{stops: tt.stops}
			var streamed strings.Builder
			stopped := false
			for _, piece := range tt.pieces {
				if stopped = text.add(piece); stopped {
					break
				}
				streamed.WriteString(text.certain())
				require.True(t, strings.HasPrefix(tt.want, streamed.String()), "%q is streamed too early", streamed.String())
			}
			streamed.WriteString(text.rest())
			require.Equal(t, tt.stopped, stopped)
			require.Equal(t, tt.want, text.all())
			require.Equal(t, tt.want, streamed.String())
		})
	}
}

func TestStreamedTextHasWholeCharacters(t *testing.T) {
	var text stopText
	var parts []string
	for _, piece := range []string{"a", "\xf0", "\x9f", "\x99", "\x82", "b\xe2", "\x82\xac"} {
		text.add(piece)
		if part := text.certain(); part != "" {
			parts = append(parts, part)
		}
	}
	require.Equal(t, []string{"a", "🙂", "b", "€"}, parts)
	// What is no character at all is not held back for ever.
	text.add("\xff\xfe")
	require.Equal(t, "\xff\xfe", text.certain()+text.rest())
}
