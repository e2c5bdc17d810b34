package critic

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// Errors of answers that came with status 200.
var (
	errCut       = errors.New("the answer ended before its end")
	errMalformed = errors.New("the answer has no choice")
)

// saidError is what an endpoint says instead of an answer, with status 200.
type saidError struct{ message string }

func (e *saidError) Error() string { return e.message }

// body is a response's that is no stream of events. Endpoints that do not stream answer so whatever they are asked for;
// and what stands before an endpoint, a login page say, answers with what it likes. openai-go takes both for a stream
// without events, or for nothing.
type body struct {
	came bool
	text []byte
	err  error // before its end
}

// capture is a request option that takes such a body for itself.
func (b *body) capture() option.RequestOption {
	return option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		response, err := next(r)
		if err != nil || response.StatusCode != http.StatusOK {
			return response, err
		}
		lines := bufio.NewReader(response.Body)
		first, _ := lines.Peek(1)
		for ; len(first) == 1 && strings.Contains(" \t\r\n", string(first)); first, _ = lines.Peek(1) {
			_, _ = lines.Discard(1) // it was peeked at
		}
		if len(first) == 1 && strings.Contains("{[<", string(first)) {
			b.came = true
			b.text, b.err = io.ReadAll(lines)
		}
		response.Body = struct {
			io.Reader
			io.Closer
		}{lines, response.Body}
		return response, nil
	})
}

// reply reads the body as a whole answer.
func (b *body) reply() (Reply, error) {
	if b.err != nil {
		return Reply{}, b.err
	}
	var c openai.ChatCompletion
	if err := json.Unmarshal(b.text, &c); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok && syntax.Offset >= int64(len(b.text)) {
			return Reply{}, errCut
		}
		const shown = 60
		return Reply{}, fmt.Errorf("the answer is no JSON: it begins with %q", b.text[:min(shown, len(b.text))])
	}
	return replyOf(&c)
}

func replyOf(c *openai.ChatCompletion) (Reply, error) {
	if c == nil || len(c.Choices) == 0 {
		return Reply{}, noChoice(c)
	}
	choice := c.Choices[0]
	if choice.FinishReason == "" {
		return Reply{}, fmt.Errorf("%w: it has no finish_reason", errCut)
	}
	text, err := textOf(choice.Message.JSON.Content.Raw(), choice.Message.Content)
	if err != nil {
		return Reply{}, err
	}
	finish := choice.FinishReason
	if text == "" && choice.Message.Refusal != "" {
		text, finish = choice.Message.Refusal, finishRefusal
	}
	reply := Reply{
		Text: text, Finish: finish, Model: c.Model,
		In: tokens(c.Usage.PromptTokens), Out: tokens(c.Usage.CompletionTokens),
	}
	return reply, reply.check()
}

var errLarge = errors.New("the answer is larger than any answer may be")

// check refuses what a journal could not give back: its lines are read within maxEntryBytes.
func (r Reply) check() error {
	const maxNameBytes = 1 << 10
	if len(r.Text) > maxReplyBytes || len(r.Model) > maxNameBytes || len(r.Finish) > maxNameBytes {
		return errLarge
	}
	return nil
}

// noChoice is the error of an answer without a choice: what it says itself if it does.
func noChoice(c *openai.ChatCompletion) error {
	var said struct {
		Error *struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if c != nil && json.Unmarshal([]byte(c.RawJSON()), &said) == nil && said.Error != nil {
		return &saidError{said.Error.Message}
	}
	return errMalformed
}

// textOf is the text of a content, which some endpoints send as a list of parts: those of type text are it, and thoughts,
// which stand apart there, are not.
func textOf(raw, content string) (string, error) {
	if !strings.HasPrefix(raw, "[") {
		return content, nil
	}
	var parts []struct {
		Type string          `json:"type"`
		Text json.RawMessage `json:"text"`
	}
	if err := json.Unmarshal([]byte(raw), &parts); err != nil {
		return "", fmt.Errorf("the answer's content is a list of something else than parts: %w", err)
	}
	var b bytes.Buffer
	for _, part := range parts {
		var text string
		if part.Type != "text" {
			continue
		}
		if err := json.Unmarshal(part.Text, &text); err != nil {
			return "", fmt.Errorf("a part of the answer has no text: %w", err)
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// mostTokens bounds what is believed of an endpoint's counts. No text of maxReplyBytes has as many, thoughts included.
const mostTokens = 1 << 30

// tokens is a count as an endpoint tells it; 0, which is not told, if it cannot be.
func tokens(n int64) int {
	if n < 0 || n > mostTokens {
		return 0
	}
	return int(n)
}
