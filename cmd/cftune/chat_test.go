package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// drawn are flags under which two answers of a random model are hardly ever the same.
var drawn = []string{"--threads", "1", "--temperature", "1", "--seed", "3", "--max-tokens", "6"}

// generated is the answer of `generate` to a whole conversation.
func generated(t *testing.T, model string, turns ...string) string {
	t.Helper()
	var q question
	for i, text := range turns {
		q.Messages = append(q.Messages, struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		}{[]string{"user", "assistant"}[i%2], text})
	}
	asked, err := json.Marshal(map[string]any{"messages": q.Messages})
	require.NoError(t, err)
	out, _, err := execute(t, newGenerateCommand(), string(asked), append([]string{"--model", model, "--jsonl"}, drawn...)...)
	require.NoError(t, err)
	var a answerLine
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	return a.Text
}

func TestChatAnswersAsGenerateDoes(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	talk := func(stdin string) string {
		out, _, err := execute(t, newChatCommand(), stdin, append([]string{"--model", model}, drawn...)...)
		require.NoError(t, err)
		return string([]rune(out)) // a random model's bytes are no characters, and JSON has characters only
	}
	first := generated(t, model, "the answer")
	second := generated(t, model, "the answer", first, "/is\nwrong")
	require.NotEqual(t, first, second)
	assert.Equal(t, first+"\n"+second+"\n", talk("the answer\n\n//is\\\nwrong\n"), "the conversation is read")
	assert.Equal(t, first+"\n"+first+"\n", talk("the answer\n/clear\nthe answer"), "it is forgotten")
	assert.Equal(t, first+"\n", talk("the answer\n/exit\nmore\n"), "nothing follows an exit")
	again := strings.Split(talk("the answer\n/regen\n//is\\\nwrong\n"), "\n")
	require.Len(t, again, 4)
	assert.Equal(t, first, again[0])
	assert.NotEqual(t, first, again[1])
	assert.NotEqual(t, second, again[2])
}

func TestChatTellsWhatIsWrong(t *testing.T) {
	model := tinyModel(t, testmodel.Options{Context: 64})
	for _, tt := range []struct {
		name, stdin string
		args        []string
		words       string
		code        int
	}{
		{"a command that there is not", "/regenerate\n", nil, "there is no /regenerate: /help shows", 3},
		{"no answer yet", "/regen\n", nil, "/regen: there is no answer yet", 3},
		{"the same answer", "a\n/regen\n", []string{"--max-tokens", "2"}, "/regen: the answer would be the same", 3},
		{"a message above the context", "the answer is wrong\n", []string{"--context", "8"}, "and the context has room for 8: /clear", 3},
		{"a message above what the model was made for", strings.Repeat("the answer ", 60), nil, "and the context has room for 64: /clear", 3},
		{"a negative context", "", []string{"--context", "-1"}, "--context: must be 0 or more, got -1", 2},
		{"no tokens", "", []string{"--max-tokens", "0"}, "--max-tokens: must be at least 1", 2},
		{"no model", "", []string{"--model", "none.gguf"}, "no such file", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := execute(t, newChatCommand(), tt.stdin, append([]string{"--model", model, "--threads", "1"}, tt.args...)...)
			require.ErrorContains(t, err, tt.words)
			require.Equal(t, tt.code, exitCode(err))
		})
	}
	_, notes, err := execute(t, newChatCommand(), "the answer\n/help\n", "--model", model, "--threads", "1", "--max-tokens", "3", "--temperature", "1")
	require.NoError(t, err)
	assert.Contains(t, notes, "[cut off: --max-tokens is 3]")
	assert.Contains(t, notes, "/clear   forget the conversation")
	_, notes, err = execute(t, newChatCommand(), strings.Repeat("the answer ", 8), "--model", model, "--threads", "1", "--temperature", "1")
	require.NoError(t, err)
	assert.Contains(t, notes, fmt.Sprintf("fills the context of %d tokens", 64))
}
