package faultteacher

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// batch is a batch as the server keeps it.
type batch struct {
	id       string
	input    string
	metadata map[string]string
	polls    int
	output   string // file, once it is done
	errors   string
}

// stumble fails some calls of the batch API, by number: they have no keys.
func (s *Server) stumble(w http.ResponseWriter, what string) bool {
	s.mu.Lock()
	s.arrivals[what]++
	arrival := s.arrivals[what]
	s.mu.Unlock()
	f := s.o.Faults
	if s.draw(what, arrival, "batch") < f.Internal+f.Unavailable+f.TooMany {
		s.count("batch API 500")
		fail(w, http.StatusInternalServerError, "server_error", "The server had an error")
		return true
	}
	return false
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	file, _, err := r.FormFile("file")
	if err != nil || r.FormValue("purpose") != "batch" {
		fail(w, http.StatusBadRequest, "bad_request", "want a file and the purpose batch")
		return
	}
	text, err := io.ReadAll(file)
	if err != nil || s.stumble(w, "upload") {
		return
	}
	answerJSON(w, map[string]any{"id": s.keep(text), "object": "file", "bytes": len(text), "created_at": 1, "filename": "f", "purpose": "batch", "status": "processed"})
}

func (s *Server) keep(text []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fmt.Sprintf("file-%d", len(s.files)+1)
	s.files[id] = text
	return id
}

func (s *Server) content(w http.ResponseWriter, r *http.Request) {
	if s.stumble(w, "content") {
		return
	}
	s.mu.Lock()
	text, known := s.files[r.PathValue("id")]
	s.mu.Unlock()
	if !known {
		fail(w, http.StatusNotFound, "not_found", "no such file")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if s.draw(r.PathValue("id"), s.seen("content "+r.PathValue("id")), "cut") < s.o.Faults.Cut {
		s.count("batch answers cut off")
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		_, _ = w.Write(text[:len(text)/2])
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(text)
}

func (s *Server) seen(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals[what]++
	return s.arrivals[what]
}

// createBatch charges at once. Some calls make the batch and fail all the same: a client that then makes another pays twice.
func (s *Server) createBatch(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Input    string            `json:"input_file_id"`
		Metadata map[string]string `json:"metadata"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if s.stumble(w, "create") {
		return
	}
	s.mu.Lock()
	text, known := s.files[body.Input]
	s.mu.Unlock()
	if !known {
		fail(w, http.StatusBadRequest, "bad_request", "no such file")
		return
	}
	b := &batch{input: body.Input, metadata: body.Metadata}
	s.fill(b, text)
	s.mu.Lock()
	b.id = fmt.Sprintf("batch_%d", len(s.batches)+1)
	s.batches[b.id] = b
	s.order = append(s.order, b.id)
	s.mu.Unlock()
	s.count("batches")
	if s.draw(b.id, 0, "made and failed") < s.o.Faults.Hang+s.o.Faults.Cut {
		s.count("batch made, answer lost")
		panic(http.ErrAbortHandler)
	}
	answerJSON(w, s.describe(b))
}

// fill answers a batch's requests.
func (s *Server) fill(b *batch, text []byte) {
	var good, bad bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var line struct {
			ID   string   `json:"custom_id"`
			Body question `json:"body"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		key := line.ID
		if s.draw(key, s.seen(key), "batch row") < s.o.Faults.BatchRowMissing {
			s.count("batch row missing")
			fmt.Fprintf(&bad, `{"id":"x","custom_id":%q,"response":null,"error":{"code":"batch_expired","message":"not done in time"}}`+"\n", key)
			continue
		}
		if s.draw(key, 0, "refuse") < s.o.Faults.Refuse {
			s.count("batch row refused")
			fmt.Fprintf(&bad, `{"id":"x","custom_id":%q,"response":{"status_code":400,"body":{"error":{"message":"This request is not taken"}}},"error":null}`+"\n", key)
			continue
		}
		a := s.make(key, line.Body, true)
		body := whole(line.Body, a, true)
		if s.draw(key, s.seen("malformed "+key), "malformed") < s.o.Faults.Malformed {
			s.count("batch row malformed")
			body = []byte(`{"choices":[]}`)
		}
		fmt.Fprintf(&good, `{"id":"x","custom_id":%q,"response":{"status_code":200,"request_id":"r","body":%s},"error":null}`+"\n", key, body)
	}
	b.output, b.errors = s.keep(good.Bytes()), s.keep(bad.Bytes())
}

func (s *Server) describe(b *batch) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := map[string]any{
		"id": b.id, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": b.input, "completion_window": "24h",
		"status": "in_progress", "created_at": 1, "metadata": b.metadata,
	}
	if b.polls > s.o.BatchPolls {
		d["status"], d["output_file_id"], d["error_file_id"] = "completed", b.output, b.errors
	}
	return d
}

func (s *Server) getBatch(w http.ResponseWriter, r *http.Request) {
	if s.stumble(w, "get") {
		return
	}
	s.mu.Lock()
	b := s.batches[r.PathValue("id")]
	if b != nil {
		b.polls++
	}
	s.mu.Unlock()
	if b == nil {
		fail(w, http.StatusNotFound, "not_found", "no such batch")
		return
	}
	answerJSON(w, s.describe(b))
}

func (s *Server) listBatches(w http.ResponseWriter, r *http.Request) {
	if s.stumble(w, "list") {
		return
	}
	s.mu.Lock()
	order := append([]string(nil), s.order...)
	s.mu.Unlock()
	data := []any{}
	for _, id := range order {
		s.mu.Lock()
		b := s.batches[id]
		s.mu.Unlock()
		data = append(data, s.describe(b))
	}
	answerJSON(w, map[string]any{"object": "list", "data": data, "has_more": false})
}
