package critic

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cftune/trainer/dataset"
	"cftune/trainer/shard"
)

// Records are what the requests are about.
type Records interface {
	Len() int
	Record(i int) (dataset.Record, error)
	Rest(i int) (map[string]json.RawMessage, error) // the row's fields that the record does not have
}

// Teacher is a model that is asked, with what it costs and bears.
type Teacher struct {
	Name    string
	Backend Backend
	Price   Price
	// Concurrency is how many requests are in flight at most; RequestsPerMinute and TokensPerMinute bound their rate, 0 = no
	// bound. A request counts with its prompt's likely tokens and all that it may generate, until the answer tells.
	Concurrency       int
	RequestsPerMinute int
	TokensPerMinute   int
	// Batch sends requests as files to the endpoint's batch API; Backend must be an *Endpoint then.
	Batch *BatchOptions
	// Describe is what a run's record says about the teacher. What is in it must be the same when the run goes on.
	Describe map[string]any
}

// Plan is all that decides what is asked.
type Plan struct {
	Records  Records
	Messages func(dataset.Record) ([]dataset.Message, error)
	Teachers []Teacher
	PerRow   int // requests for each record and teacher
	Seed     uint64
	Shard    shard.Shard // the records that are asked about

	MaxTokens   int
	Temperature float64
	TopP        float64
	Stop        []string
}

// rows is the number of records that are asked about.
func (p Plan) rows() int { return p.Shard.Len(p.Records.Len()) }

// jobs is the number of requests: they are numbered by row, then teacher, then repetition.
func (p Plan) jobs() int { return p.rows() * len(p.Teachers) * p.PerRow }

// place is what a request's number stands for.
type place struct{ row, teacher, number int }

func (p Plan) place(job int) place {
	each := len(p.Teachers) * p.PerRow
	return place{p.Shard.Row(job / each), job % each / p.PerRow, job % p.PerRow}
}

func (p Plan) check() error {
	switch {
	case p.Records.Len() == 0:
		return errors.New("there are no records")
	case len(p.Teachers) == 0:
		return errors.New("there is no teacher")
	case p.PerRow < 1:
		return fmt.Errorf("requests per record: must be at least 1, got %d", p.PerRow)
	case p.MaxTokens < 1:
		return fmt.Errorf("max tokens: must be at least 1, got %d", p.MaxTokens)
	case p.rows() == 0:
		return fmt.Errorf("of %d records none falls to shard %d of %d", p.Records.Len(), p.Shard.Number, p.Shard.Of)
	case p.jobs()/len(p.Teachers)/p.PerRow != p.rows() || p.jobs() > 1<<31:
		return errors.New("there are too many requests")
	}
	names := map[string]bool{}
	for _, t := range p.Teachers {
		if t.Name == "" || names[t.Name] {
			return fmt.Errorf("teacher %q: each needs a name of its own", t.Name)
		}
		names[t.Name] = true
		if t.Concurrency < 1 {
			return fmt.Errorf("teacher %s: concurrency must be at least 1, got %d", t.Name, t.Concurrency)
		}
		if _, endpoint := t.Backend.(*Endpoint); t.Batch != nil && !endpoint {
			return fmt.Errorf("teacher %s: only an endpoint has a batch API", t.Name)
		}
	}
	return nil
}

// request makes a job's request. Its seed is a function of the plan's and of the number that the job has without shards, whatever ran before.
func (p Plan) request(job int, run string) (Request, error) {
	at := p.place(job)
	whole := (at.row*len(p.Teachers)+at.teacher)*p.PerRow + at.number
	r, err := p.Records.Record(at.row)
	if err != nil {
		return Request{}, err
	}
	messages, err := p.Messages(r)
	if err != nil {
		return Request{}, &dataset.Error{File: r.ID, Err: err}
	}
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, p.Seed), uint64(whole)))
	key := sha256.Sum256(fmt.Appendf(nil, "%s %d", run, job))
	return Request{
		Messages: messages, MaxTokens: p.MaxTokens, Temperature: p.Temperature, TopP: p.TopP, Stop: p.Stop,
		Seed: binary.LittleEndian.Uint64(sum[:8]), Job: job, Key: "cftune-" + hex.EncodeToString(key[:16]),
	}, nil
}

// Options say how a plan is worked through.
type Options struct {
	Dir      string
	Budget   Money // 0 = none
	Attempts int   // of each request, by each process
	Backoff  Backoff
	// Drain is how long answers that are on their way may take to arrive once ctx has ended.
	Drain time.Duration
	// KeepThoughts writes what a model thinks before </think> too.
	KeepThoughts bool
	// Observe, if set, is told after each answer and each failure, by one goroutine at a time.
	Observe func(Progress)
	// Note, if set, gets lines for people.
	Note func(text string)
}

// Progress is how far a run is.
type Progress struct {
	Jobs  int
	Tally Tally
}
