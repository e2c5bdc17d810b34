package critic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// batchEnd is what an endpoint says about a batch.
type batchEnd struct {
	ended   bool
	status  string
	message string
	files   []string // with answers, with errors
}

// batchLine is a request in a batch's file.
type batchLine struct {
	CustomID string                         `json:"custom_id"`
	Method   string                         `json:"method"`
	URL      string                         `json:"url"`
	Body     openai.ChatCompletionNewParams `json:"body"`
}

func (e *Endpoint) writeBatchLine(w io.Writer, id string, r Request) error {
	line, err := json.Marshal(batchLine{id, http.MethodPost, string(openai.BatchNewParamsEndpointV1ChatCompletions), e.params(r)})
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// call runs a call of openai-go within the endpoint's patience, and says what its error means.
func (e *Endpoint) call(ctx context.Context, do func(ctx context.Context, options ...option.RequestOption) error) error {
	ctx, left, cancel := e.sending(ctx)
	defer cancel()
	var response *http.Response
	if err := do(ctx, option.WithResponseInto(&response)); err != nil {
		return e.fault(ctx, response, left.Load(), err)
	}
	return nil
}

// findBatch returns the id of the batch with such metadata, "" if there is none.
func (e *Endpoint) findBatch(ctx context.Context, mark map[string]string) (id string, err error) {
	err = e.call(ctx, func(ctx context.Context, options ...option.RequestOption) error {
		pages := e.batches.ListAutoPaging(ctx, openai.BatchListParams{Limit: openai.Int(100)}, options...)
		for pages.Next() {
			b := pages.Current()
			same := true
			for key, value := range mark {
				same = same && b.Metadata[key] == value
			}
			if same {
				id = b.ID
				return nil
			}
		}
		return pages.Err()
	})
	return id, err
}

func (e *Endpoint) createBatch(ctx context.Context, file []byte, mark map[string]string, key string) (id string, err error) {
	var uploaded string
	err = e.call(ctx, func(ctx context.Context, options ...option.RequestOption) error {
		f, err := e.files.New(ctx, openai.FileNewParams{
			File: openai.File(bytes.NewReader(file), "cftune.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
		}, options...)
		if err == nil {
			uploaded = f.ID
		}
		return err
	})
	if err != nil {
		return "", err
	}
	err = e.call(ctx, func(ctx context.Context, options ...option.RequestOption) error {
		b, err := e.batches.New(ctx, openai.BatchNewParams{
			CompletionWindow: openai.BatchNewParamsCompletionWindow24h, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions,
			InputFileID: uploaded, Metadata: mark,
		}, append(options, option.WithHeader("Idempotency-Key", key))...)
		if err == nil && b.ID == "" {
			return errMalformed
		}
		if err == nil {
			id = b.ID
		}
		return err
	})
	return id, err
}

// batch looks at a batch.
func (e *Endpoint) batch(ctx context.Context, id string) (end batchEnd, err error) {
	err = e.call(ctx, func(ctx context.Context, options ...option.RequestOption) error {
		b, err := e.batches.Get(ctx, id, options...)
		if err != nil {
			return err
		}
		if b.Status == "" {
			return errMalformed
		}
		end = batchEnd{status: string(b.Status)}
		switch b.Status {
		case openai.BatchStatusCompleted, openai.BatchStatusFailed, openai.BatchStatusExpired, openai.BatchStatusCancelled:
			end.ended = true
		}
		for _, file := range []string{b.OutputFileID, b.ErrorFileID} {
			if file != "" {
				end.files = append(end.files, file)
			}
		}
		var words []string
		for _, fault := range b.Errors.Data {
			words = append(words, fault.Message)
		}
		end.message = e.redact(strings.Join(words, "; "))
		return nil
	})
	return end, err
}

// batchReply is a line of a batch's answers.
type batchReply struct {
	CustomID string `json:"custom_id"`
	Response *struct {
		Status int             `json:"status_code"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// batchFile reads a file of answers, until enter returns false.
func (e *Endpoint) batchFile(ctx context.Context, file string, enter func(id string, r Reply, fault *Fault) bool) error {
	var response *http.Response
	err := e.call(ctx, func(ctx context.Context, options ...option.RequestOption) (err error) {
		response, err = e.files.Content(context.WithoutCancel(ctx), file, options...) // its body outlives the call
		return err
	})
	if err != nil {
		return err
	}
	defer response.Body.Close()
	stop := context.AfterFunc(ctx, func() { response.Body.Close() })
	defer stop()
	lines := bufio.NewReaderSize(response.Body, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 && (err == nil || err == io.EOF) {
			id, reply, fault := e.parseBatchReply(line)
			if id == "" {
				return &Fault{Kind: FaultMalformed, Err: errors.New("a line of the batch's answers cannot be read")}
			}
			if !enter(id, reply, fault) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &Fault{Kind: FaultCut, Err: e.described(err)}
		}
	}
}

func (e *Endpoint) parseBatchReply(line []byte) (id string, reply Reply, fault *Fault) {
	var r batchReply
	if err := json.Unmarshal(line, &r); err != nil || r.CustomID == "" {
		return "", Reply{}, nil
	}
	switch {
	case r.Error != nil:
		kind := FaultServer
		if r.Error.Code != "batch_expired" && r.Response != nil && r.Response.Status < 500 && r.Response.Status != http.StatusTooManyRequests {
			kind = FaultRefused
		}
		return r.CustomID, Reply{}, &Fault{Kind: kind, Err: e.described(errors.New(r.Error.Code + ": " + r.Error.Message))}
	case r.Response == nil:
		return r.CustomID, Reply{}, &Fault{Kind: FaultMalformed, Err: errMalformed}
	case r.Response.Status != http.StatusOK:
		return r.CustomID, Reply{}, &Fault{Kind: kindOfStatus(r.Response.Status, nil), Status: r.Response.Status, Err: e.described(errors.New(string(r.Response.Body)))}
	}
	var c openai.ChatCompletion
	err := json.Unmarshal(r.Response.Body, &c)
	if err == nil {
		reply, err = replyOf(&c)
	}
	if err != nil {
		return r.CustomID, Reply{}, &Fault{Kind: FaultMalformed, MayBePaid: true, Err: e.described(err)}
	}
	reply.Text, reply.Model = e.redact(reply.Text), e.redact(reply.Model)
	return r.CustomID, reply, nil
}
