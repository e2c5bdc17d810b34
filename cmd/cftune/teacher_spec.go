package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/trainer/critic"
)

// teacherSpec is what --teacher or --endpoint says: name=value, separated by commas.
type teacherSpec struct {
	name, model, url, keyEnv string
	gguf, adapter            string
	templateFile             string
	price                    critic.Price
	requests, tokens         int // per minute
	concurrency              int // 0 = the command's
	stream                   bool
	without                  []string // fields that are not sent
	tokensField              string
	timeout, idle, poll      time.Duration
	batch                    int // requests of a batch; 0 = no batches
}

const (
	openAIURL    = "https://api.openai.com/v1"
	openAIKeyEnv = "OPENAI_API_KEY"
)

const teacherSpecHelp = `A teacher is written as name=value, separated by commas. An OpenAI-compatible endpoint has

  model         as the endpoint names it
  url           with the version, https://host/v1 (default OpenAI's)
  key_env       environment variable that has the key (default OPENAI_API_KEY for OpenAI's, none for others)
  price_in, price_out   of a million tokens: needed for a budget and a cost report. For batches, the price of batches
  rpm, tpm      requests and tokens per minute, at most
  concurrency   requests at a time
  stream        false for endpoints that do not stream
  tokens_field  max_completion_tokens for models that do not take max_tokens
  without       fields that are not sent, for endpoints that refuse them: of temperature, top_p, seed and stream_options, with +
                between; the answers are then as the endpoint draws them, and without stream_options their tokens may be estimated
  timeout, idle longest time of a whole request (10m), and without a byte (2m)
  batch         use the batch API, with so many requests in a batch; poll (30s) is the time between two looks

and a local one has gguf, and adapter or template_file if need be. Each may have a name; it is the model's otherwise.
The key itself is never an argument, and is written nowhere.`

// parseTeacher reads a teacher's description.
func parseTeacher(text string) (teacherSpec, error) {
	s := teacherSpec{stream: true, tokensField: "max_tokens", timeout: 10 * time.Minute, idle: 2 * time.Minute, poll: 30 * time.Second}
	money := func(to *critic.Money) func(string) error {
		return func(v string) (err error) { *to, err = critic.ParseMoney(v); return err }
	}
	words := func(to *string) func(string) error { return func(v string) error { *to = v; return nil } }
	count := func(to *int) func(string) error {
		return func(v string) (err error) {
			if *to, err = strconv.Atoi(v); err == nil && *to < 1 {
				err = errors.New("must be at least 1")
			}
			return err
		}
	}
	duration := func(to *time.Duration) func(string) error {
		return func(v string) (err error) {
			if *to, err = time.ParseDuration(v); err == nil && *to <= 0 {
				err = errors.New("must be above 0")
			}
			return err
		}
	}
	set := map[string]func(string) error{
		"name": words(&s.name), "model": words(&s.model), "url": words(&s.url), "key_env": words(&s.keyEnv), "gguf": words(&s.gguf),
		"adapter": words(&s.adapter), "template_file": words(&s.templateFile), "tokens_field": words(&s.tokensField),
		"price_in": money(&s.price.In), "price_out": money(&s.price.Out), "rpm": count(&s.requests), "tpm": count(&s.tokens),
		"concurrency": count(&s.concurrency), "batch": count(&s.batch), "timeout": duration(&s.timeout), "idle": duration(&s.idle),
		"poll": duration(&s.poll), "without": func(v string) error { return s.leaveOut(v) }, "stream": func(v string) (err error) { s.stream, err = strconv.ParseBool(v); return err },
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		key, value, found := strings.Cut(strings.TrimSpace(part), "=")
		put, known := set[key]
		switch {
		case !found && strings.HasSuffix(key, ".gguf"):
			return s, fmt.Errorf("%q: want name=value: gguf=%s", part, key)
		case !found || value == "":
			return s, fmt.Errorf("%q: want name=value", part)
		case !known:
			return s, fmt.Errorf("%q is not known; there are %s", key, strings.Join(slices.Sorted(maps.Keys(set)), ", "))
		case seen[key]:
			return s, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if err := put(value); err != nil {
			return s, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	return s, s.check(seen)
}

// leaveOut reads the names of fields that are not sent.
func (s *teacherSpec) leaveOut(names string) error {
	for name := range strings.SplitSeq(names, "+") {
		if !slices.Contains(critic.OptionalFields(), name) {
			return fmt.Errorf("want some of %s, with + between", strings.Join(critic.OptionalFields(), ", "))
		}
		if !slices.Contains(s.without, name) {
			s.without = append(s.without, name)
		}
	}
	slices.Sort(s.without)
	return nil
}

// check refuses what does not go together, and fills in what follows from the rest.
func (s *teacherSpec) check(seen map[string]bool) error {
	if s.gguf != "" {
		for _, key := range []string{"model", "url", "key_env", "price_in", "price_out", "rpm", "tpm", "concurrency", "stream", "without", "tokens_field", "timeout", "idle", "batch", "poll"} {
			if seen[key] {
				return fmt.Errorf("%s is for endpoints, gguf for local models", key)
			}
		}
		if s.name == "" {
			s.name = strings.TrimSuffix(s.gguf[strings.LastIndexByte(s.gguf, '/')+1:], ".gguf")
		}
		return nil
	}
	switch {
	case s.model == "":
		return errors.New("has neither model nor gguf")
	case s.adapter != "" || s.templateFile != "":
		return errors.New("adapter and template_file are for local models")
	case s.tokensField != "max_tokens" && s.tokensField != "max_completion_tokens":
		return fmt.Errorf("tokens_field must be max_tokens or max_completion_tokens, got %s", s.tokensField)
	case seen["poll"] && s.batch == 0:
		return errors.New("poll needs batch")
	}
	if s.url == "" {
		s.url = openAIURL
		if s.keyEnv == "" {
			s.keyEnv = openAIKeyEnv
		}
	}
	if s.name == "" {
		s.name = s.model
	}
	return nil
}

// endpoint opens the spec's endpoint, with the key from the environment.
func (s teacherSpec) endpoint(connections int) (*critic.Endpoint, error) {
	key := ""
	if s.keyEnv != "" {
		if key = strings.TrimSpace(os.Getenv(s.keyEnv)); key == "" {
			return nil, fmt.Errorf("teacher %s: the environment variable %s, which should have the key, is empty", s.name, s.keyEnv)
		}
	}
	e, err := critic.NewEndpoint(critic.EndpointOptions{
		URL: s.url, Model: s.model, Key: key, Stream: s.stream, Without: s.without, TokensField: s.tokensField, Timeout: s.timeout, Idle: s.idle, Connections: connections,
	})
	if err != nil {
		return nil, fmt.Errorf("teacher %s: %w", s.name, err)
	}
	return e, nil
}
