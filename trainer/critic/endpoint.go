package critic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"

	"cftune/trainer/dataset"
)

// EndpointOptions say where an OpenAI-compatible endpoint is and how patient to be with it.
type EndpointOptions struct {
	URL         string        // with the version: https://host/v1
	Model       string        // as the endpoint names it
	Key         string        // empty = none is sent
	Stream      bool          // tokens as they are made, which shows a connection that hangs
	Without     []string      // of OptionalFields: not sent, for endpoints that refuse them
	TokensField string        // max_tokens, or max_completion_tokens for models that want that
	Timeout     time.Duration // of a whole request
	Idle        time.Duration // without a byte
	Connections int           // at a time
}

// OptionalFields are the fields of a request that some endpoints refuse, in any value.
func OptionalFields() []string { return []string{"temperature", "top_p", "seed", "stream_options"} }

// Endpoint is a Backend behind HTTP. It never tries again by itself.
type Endpoint struct {
	o       EndpointOptions
	chat    openai.ChatCompletionService
	files   openai.FileService
	batches openai.BatchService
	client  *http.Client
}

// NewEndpoint checks the options; it connects to nothing. No option comes from the environment: a key for one endpoint
// must not go to another.
func NewEndpoint(o EndpointOptions) (*Endpoint, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("url %q: want http://host/v1 or https://host/v1", o.URL)
	}
	if u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("url of %s: must have neither user, password nor query: they would be written down; a key is taken from the environment", u.Host)
	}
	if o.Model == "" {
		return nil, errors.New("the model is not named")
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: o.Connections, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, TLSHandshakeTimeout: 30 * time.Second,
	}
	e := &Endpoint{o: o, client: &http.Client{Transport: guarded{transport, o.Idle, 4 * maxReplyBytes}}}
	options := []option.RequestOption{
		option.WithBaseURL(strings.TrimRight(o.URL, "/") + "/"), option.WithHTTPClient(e.client), option.WithMaxRetries(0),
	}
	if o.Key != "" {
		options = append(options, option.WithAPIKey(o.Key))
	}
	e.chat = openai.NewChatCompletionService(options...)
	files := &http.Client{Transport: guarded{transport, o.Idle, maxBatchReplyBytes}}
	e.files = openai.NewFileService(append(options, option.WithHTTPClient(files))...)
	e.batches = openai.NewBatchService(options...)
	return e, nil
}

// Close ends idle connections.
func (e *Endpoint) Close() { e.client.CloseIdleConnections() }

func (e *Endpoint) sends(field string) bool { return !slices.Contains(e.o.Without, field) }

func (e *Endpoint) params(r Request) openai.ChatCompletionNewParams {
	p := openai.ChatCompletionNewParams{Model: e.o.Model}
	if e.sends("temperature") {
		p.Temperature = param.NewOpt(r.Temperature)
	}
	if e.sends("top_p") {
		p.TopP = param.NewOpt(r.TopP)
	}
	if e.sends("seed") {
		p.Seed = param.NewOpt(int64(r.Seed >> 33)) // endpoints keep it in 32 bits, with a sign
	}
	if e.o.TokensField == "max_completion_tokens" {
		p.MaxCompletionTokens = param.NewOpt(int64(r.MaxTokens))
	} else {
		p.MaxTokens = param.NewOpt(int64(r.MaxTokens))
	}
	if len(r.Stop) > 0 {
		p.Stop.OfStringArray = r.Stop
	}
	for _, m := range r.Messages {
		switch m.Role {
		case dataset.RoleSystem:
			p.Messages = append(p.Messages, openai.SystemMessage(m.Content))
		case dataset.RoleAssistant:
			p.Messages = append(p.Messages, openai.AssistantMessage(m.Content))
		default:
			p.Messages = append(p.Messages, openai.UserMessage(m.Content))
		}
	}
	return p
}

// Complete sends a request and reads its answer.
func (e *Endpoint) Complete(ctx context.Context, r Request) (Reply, error) {
	ctx, left, cancel := e.sending(ctx)
	defer cancel()
	var response *http.Response
	options := []option.RequestOption{option.WithHeader("Idempotency-Key", r.Key), option.WithResponseInto(&response)}
	var (
		reply Reply
		err   error
	)
	if e.o.Stream {
		reply, err = e.stream(ctx, r, options)
	} else {
		reply, err = e.whole(ctx, r, options)
	}
	if err != nil {
		return Reply{}, e.fault(ctx, response, left.Load(), err)
	}
	reply.Text, reply.Model = e.redact(reply.Text), e.redact(reply.Model)
	return reply, nil
}

func (e *Endpoint) whole(ctx context.Context, r Request, options []option.RequestOption) (Reply, error) {
	var b body
	c, err := e.chat.New(ctx, e.params(r), append(options, b.capture())...)
	if b.came {
		return b.reply()
	}
	if err != nil {
		return Reply{}, err
	}
	return replyOf(c)
}

func (e *Endpoint) stream(ctx context.Context, r Request, options []option.RequestOption) (Reply, error) {
	p := e.params(r)
	if e.sends("stream_options") {
		p.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: param.NewOpt(true)}
	}
	var b body
	s := e.chat.NewStreaming(ctx, p, append(options, b.capture())...)
	defer s.Close()
	if b.came {
		return b.reply()
	}
	var (
		reply   Reply
		text    strings.Builder
		refused bool
	)
	for s.Next() {
		c := s.Current()
		if c.Model != "" {
			reply.Model = c.Model
		}
		if c.Usage.TotalTokens > 0 || c.Usage.CompletionTokens > 0 {
			reply.In, reply.Out = tokens(c.Usage.PromptTokens), tokens(c.Usage.CompletionTokens)
		}
		for _, choice := range c.Choices {
			if choice.Index != 0 {
				continue
			}
			part, err := textOf(choice.Delta.JSON.Content.Raw(), choice.Delta.Content)
			if err != nil {
				return Reply{}, err
			}
			text.WriteString(part)
			text.WriteString(choice.Delta.Refusal)
			refused = refused || choice.Delta.Refusal != ""
			if choice.FinishReason != "" {
				reply.Finish = choice.FinishReason
			}
		}
		if text.Len() > maxReplyBytes {
			return Reply{}, errLarge
		}
	}
	// After the finish reason comes only the count of tokens: an answer that is cut there is whole.
	if err := s.Err(); err != nil && reply.Finish == "" {
		return Reply{}, err
	}
	if reply.Finish == "" {
		return Reply{}, errCut // a stream that is cut off ends like a whole one, but for this
	}
	reply.Text = text.String()
	if refused {
		reply.Finish = finishRefusal
	}
	return reply, reply.check()
}

// sending returns a context for a request, which ends with the time that it has, and tells whether it left: there was a connection to
// send it on.
func (e *Endpoint) sending(ctx context.Context) (within context.Context, left *atomic.Bool, cancel context.CancelFunc) {
	ctx, cancel = context.WithTimeoutCause(ctx, e.o.Timeout, fmt.Errorf("no whole answer within %s: %w", e.o.Timeout, context.DeadlineExceeded))
	left = new(atomic.Bool)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { left.Store(true) }}), left, cancel
}

// fault tells what an error means. The key is in no error's text.
func (e *Endpoint) fault(ctx context.Context, response *http.Response, left bool, err error) *Fault {
	f := &Fault{Err: e.described(err)}
	if response != nil {
		f.Status = response.StatusCode
	}
	if f.Status >= 400 {
		f.RetryAfter = RetryAfter(response.Header, time.Now())
		f.Kind = kindOfStatus(f.Status, err)
		switch f.Status {
		case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
			f.MayBePaid = true // a gateway gave up on an endpoint that may have answered it
		}
		return f
	}
	cause := context.Cause(ctx)
	var timeout net.Error
	var said *saidError
	var redirect *redirectError
	switch {
	case errors.As(err, &redirect): // nothing was asked
		f.Kind, f.Err = FaultDenied, errors.New(e.redact(redirect.Error()))
		return f
	case !left && !errors.Is(cause, context.Canceled): // an address that there is not, a certificate that is not trusted
		f.Kind = FaultConnect
		return f
	case errors.As(err, &said):
		f.Kind = FaultServer
		return f
	case errors.Is(cause, context.DeadlineExceeded):
		f.Kind, f.Err = FaultTimeout, cause
	case errors.Is(cause, context.Canceled):
		f.Kind = FaultInterrupt
		if !left {
			return f
		}
	case errors.Is(err, errIdle), errors.As(err, &timeout) && timeout.Timeout():
		f.Kind = FaultTimeout
	case f.Status == 200 && !errors.Is(err, errCut) && !isCut(err):
		f.Kind = FaultMalformed
	default:
		f.Kind = FaultCut
	}
	f.MayBePaid = true
	return f
}

func isCut(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unexpected EOF") || strings.Contains(text, "connection reset") || strings.Contains(text, "EOF")
}

// described is an error with what the endpoint said, which openai-go keeps out of its own text.
func (e *Endpoint) described(err error) error {
	text := err.Error()
	var api *openai.Error
	switch {
	case !errors.As(err, &api):
	case api.Message != "":
		text = api.Message
	case api.Request != nil: // it is not said in the protocol's words: a proxy, or another service
		text = fmt.Sprintf("%s %s: %s", api.Request.Method, api.Request.URL, http.StatusText(api.StatusCode))
	}
	const most = 500
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + " ..."
	}
	return errors.New(e.redact(text))
}

// redact takes the key out of a text: some endpoints repeat it in their errors.
func (e *Endpoint) redact(text string) string {
	if e.o.Key == "" {
		return text
	}
	return strings.ReplaceAll(text, e.o.Key, "[key]")
}

func kindOfStatus(status int, err error) string {
	var api *openai.Error
	if errors.As(err, &api) && api.Code == "insufficient_quota" {
		return FaultDenied
	}
	switch {
	case status == http.StatusTooManyRequests:
		return FaultRateLimit
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusNotFound, status == http.StatusPaymentRequired:
		return FaultDenied
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusTooEarly, status >= 500:
		return FaultServer
	}
	return FaultRefused
}

// Describe is what a run's record says about the endpoint: all but the key.
func (e *Endpoint) Describe() map[string]any {
	d := map[string]any{"url": e.o.URL, "model": e.o.Model, "stream": e.o.Stream, "tokens_field": e.o.TokensField}
	if len(e.o.Without) > 0 {
		d["without"] = e.o.Without
	}
	return d
}
