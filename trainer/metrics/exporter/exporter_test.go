package exporter

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/trainer/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var run = Run{Version: "1.2", Dir: `runs/a "b"`, Model: "model.gguf", Objective: "cft", Device: "auto"}

func listen(t *testing.T) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", run)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

// figuresOf are the lines of this program, by name with labels.
func figuresOf(t *testing.T, s *Server) map[string]string {
	t.Helper()
	status, body := get(t, s.URL())
	require.Equal(t, http.StatusOK, status)
	found := map[string]string{}
	for line := range strings.Lines(body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(line, "cftune_") {
			if at := strings.LastIndex(line, "} "); at >= 0 {
				name, value = line[:at+1], strings.TrimSpace(line[at+2:])
			}
			found[strings.TrimPrefix(name, "cftune_")] = value
		}
	}
	return found
}

func TestFiguresOfARun(t *testing.T) {
	s := listen(t)
	label := `info{device="auto",model="model.gguf",objective="cft",run="runs/a \"b\"",version="1.2"}`
	none := map[string]string{label: "1", "step": "0", "planned_steps": "0", "tokens_total": "0", "target_tokens_total": "0", "skipped_steps_total": "0"}
	assert.Equal(t, none, figuresOf(t, s), "what is not known yet must be left out")

	at := time.Unix(1_700_000_000, 500_000_000)
	s.Stands(40, 90)
	s.Validation(metrics.Validation{Step: 40, Loss: 2.5, Objective: "cft"})
	s.Validation(metrics.Validation{Step: 40, Loss: 2.25})
	for n := range 2 {
		s.Step(metrics.Step{
			Step: 41 + n, Epoch: 0.5, Loss: 1.5 - float64(n)/4, Targets: 30, Tokens: 200, LR: 0.125, GradNorm: 0.75, TokensPerS: 100, TargetTokensPerS: 15,
			Objective: map[string]int{"cft": 2, "sft": n}, MemoryBytes: 4096, Time: at, Seconds: 2,
		})
	}
	s.Skip(metrics.Skip{Step: 43, Skipped: 7})
	s.Saved(42, at)
	assert.Equal(t, map[string]string{
		label: "1", "step": "42", "planned_steps": "90", "epoch": "0.5", "loss": "1.25", "learning_rate": "0.125", "gradient_norm": "0.75",
		"tokens_per_second": "100", "target_tokens_per_second": "15", "step_duration_seconds": "2", "step_timestamp_seconds": "1.7000000005e+09",
		"memory_bytes": "4096", "tokens_total": "400", "target_tokens_total": "60", `examples_total{objective="cft"}`: "4",
		`examples_total{objective="sft"}`: "1", "skipped_steps_total": "1", "checkpoint_step": "42", "checkpoint_timestamp_seconds": "1.7000000005e+09",
		`validation_loss{objective="cft"}`: "2.5", `validation_loss{objective="all"}`: "2.25",
	}, figuresOf(t, s))
}

// Names, units and help are as Prometheus wants them; the process and the runtime are shown too.
func TestFormat(t *testing.T) {
	s := listen(t)
	s.Step(metrics.Step{Step: 1, Objective: map[string]int{"cft": 1}, Time: time.Now()})
	s.Validation(metrics.Validation{Loss: 1})
	s.Saved(1, time.Now())
	_, body := get(t, s.URL())
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	require.NoError(t, err, "it is not in Prometheus' format")
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "cftune_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	assert.Contains(t, body, "\nprocess_resident_memory_bytes ")
	assert.Contains(t, body, "\ngo_goroutines ")
}

func TestHealthAndOtherPaths(t *testing.T) {
	s := listen(t)
	base := strings.TrimSuffix(s.URL(), "/metrics")
	status, body := get(t, base+"/healthz")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "ok\n", body)
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/x"} {
		status, _ := get(t, base+path)
		assert.Equal(t, http.StatusNotFound, status, path)
	}
}

func TestTakenAddress(t *testing.T) {
	s := listen(t)
	_, err := Listen(s.listener.Addr().String(), run)
	assert.ErrorContains(t, err, "address already in use")
}

// Clients that say nothing, or take nothing, hold up neither the run nor its end.
func TestHangingClients(t *testing.T) {
	s := listen(t)
	address := s.listener.Addr().String()
	var clients []net.Conn
	for i := range maxClients + 5 {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer c.Close()
		if i%2 == 0 {
			_, err = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"+strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 100))
			require.NoError(t, err)
		}
		clients = append(clients, c)
	}
	for n := range 10_000 {
		s.Step(metrics.Step{Step: n + 1, Time: time.Now()})
	}
	s.Close()
	for _, c := range clients {
		_, err := io.Copy(io.Discard, bufio.NewReader(c)) // returns: the server is gone
		if err != nil {
			require.ErrorContains(t, err, "connection reset")
		}
	}
	_, err := net.Dial("tcp", address)
	assert.Error(t, err, "the port must be free")
	s.Close()
}

func TestManyScrapesWhileItTrains(t *testing.T) {
	s := listen(t)
	done := make(chan error)
	for range 4 {
		go func() {
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for range 20 {
				response, err := client.Get(s.URL())
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
				}
				if err == nil && response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
					err = fmt.Errorf("status %d", response.StatusCode)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for n, left := 1, 4; left > 0; n++ {
		select {
		case err := <-done:
			require.NoError(t, err)
			left--
		default:
			s.Step(metrics.Step{Step: n, Objective: map[string]int{"cft": n}, Time: time.Now()})
			s.Validation(metrics.Validation{Step: n, Loss: float64(n), Objective: fmt.Sprint("o", n%5)})
		}
	}
}
