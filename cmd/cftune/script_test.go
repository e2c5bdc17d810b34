package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"cftune/internal/testmodel"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cftune": main})
}

// TestScripts runs the program as users do: testdata/script says what they type and what they see.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"model":     scriptModel,
			"exits":     scriptExits,
			"interrupt": scriptInterrupt,
			"killed":    scriptKilled,
			"asked":     scriptAsked,
			"await":     scriptAwait,
			"fetch":     scriptFetch,
			"cut":       scriptCut,
			"flip":      scriptFlip,
			"same":      scriptSame,
			"equal":     scriptEqual,
			"near":      scriptNear,
			"hub":       scriptHub,
			"ollama":    scriptOllama,
			"othershim": scriptOtherShim,

			"samereports": scriptSameReports,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(e *testscript.Env) error { e.Setenv("SHIM", cudaShim()); return nil },
		Condition: func(name string) (bool, error) {
			if name != "shim" {
				return false, errors.New("unknown condition " + name)
			}
			_, err := os.Stat(cudaShim())
			return err == nil, nil
		},
	})
}

// cudaShim is the CUDA engine whose kernels run on the CPU, which is built with the native tests.
func cudaShim() string {
	name := "libcftune-cuda-shim.so"
	if runtime.GOOS == "darwin" {
		name = "libcftune-cuda-shim.dylib"
	}
	path, err := filepath.Abs(filepath.Join("..", "..", "build", "native", "obj", "lib", name))
	if err != nil {
		panic(err)
	}
	return path
}

// scriptOtherShim writes that engine as it is after a build from other headers: othershim FILE
func scriptOtherShim(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: othershim FILE")
	}
	digest, err := exec.Command(filepath.Join("..", "..", "scripts", "native-digest")).Output()
	ts.Check(err)
	library, err := os.ReadFile(cudaShim())
	ts.Check(err)
	mine := bytes.TrimSpace(digest)
	if n := bytes.Count(library, mine); n == 0 {
		ts.Fatalf("the digest %s is not in %s: was it built from other headers than those that are here?", mine, cudaShim())
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.ReplaceAll(library, mine, bytes.Repeat([]byte{'0'}, len(mine))), 0o700))
}

// scriptModel writes a tiny model: model FILE [nan] [f32] [untied] [architecture=NAME] [seed=N] [embd=N] [head_dim=N] [layers=N] [shards=N] [experts=N],
// or one of testdata/families: model FILE family=NAME
func scriptModel(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: model FILE [OPTION...]")
	}
	if name, ok := strings.CutPrefix(args[len(args)-1], "family="); ok {
		text, err := os.ReadFile(filepath.Join("testdata", "families", name+".json"))
		ts.Check(err)
		var described testmodel.Described
		ts.Check(json.Unmarshal(text, &described))
		ts.Check(described.Write(ts.MkAbs(args[0])))
		return
	}
	o := testmodel.Options{Seed: 1, Type: testmodel.Q8_0}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "nan":
			o.NaN, o.Type = true, testmodel.F32
		case "f32":
			o.Type = testmodel.F32
		case "untied":
			o.Untied = true
		case "architecture":
			o.Architecture = value
		default:
			to := map[string]*int{"embd": &o.Embd, "layers": &o.Layers, "shards": &o.Shards, "head_dim": &o.HeadDim, "experts": &o.Experts}[key]
			n, err := strconv.Atoi(value)
			switch {
			case key == "seed" && err == nil:
				o.Seed = uint64(n)
			case to != nil && err == nil:
				*to = n
			default:
				ts.Fatalf("model: unknown option %s", arg)
			}
		}
	}
	ts.Check(testmodel.Write(ts.MkAbs(args[0]), o))
}

// scriptExits runs a command and compares its exit code: exits CODE COMMAND [ARGUMENT...]
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCodeOf(ts, ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitCodeOf(ts *testscript.TestScript, err error) int {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// interruptDeadline bounds the wait for the step at which a script interrupts a run; a step takes well below a second.
const interruptDeadline = 2 * time.Minute

// scriptInterrupt runs a command, sends SIGINT once the metrics have so many lines, and wants exit code 130; what it said
// is then in the file stderr.txt: interrupt METRICS LINES COMMAND [ARGUMENT...]
func scriptInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if got := stopAtLine(ts, neg, args, os.Interrupt); got != codeInterrupted {
		ts.Fatalf("exit code %d, want %d\n%s", got, codeInterrupted, ts.ReadFile("stderr.txt"))
	}
}

// scriptKilled does the same with SIGKILL, after which a process does nothing more: killed METRICS LINES COMMAND [ARGUMENT...]
func scriptKilled(ts *testscript.TestScript, neg bool, args []string) {
	if got := stopAtLine(ts, neg, args, os.Kill); got != -1 {
		ts.Fatalf("exit code %d of a process that was killed", got)
	}
}

// scriptAsked does the same with SIGUSR1, after which a run goes on to its end.
func scriptAsked(ts *testscript.TestScript, neg bool, args []string) {
	if got := stopAtLine(ts, neg, args, syscall.SIGUSR1); got != 0 {
		ts.Fatalf("exit code %d\n%s", got, ts.ReadFile("stderr.txt"))
	}
}

// scriptAwait waits until a file has so many lines: await FILE LINES
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE LINES")
	}
	lines, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(awaitLines(ts.MkAbs(args[0]), lines, nil))
}

// scriptFetch gets a page of a server whose address is a file's only line: fetch ADDRESSFILE PATH OUTPUT
func scriptFetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: fetch ADDRESSFILE PATH OUTPUT")
	}
	client := http.Client{Timeout: interruptDeadline}
	answer, err := client.Get(strings.TrimSuffix(strings.TrimSpace(ts.ReadFile(args[0])), "/") + args[1])
	ts.Check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), text, 0o600))
}

// stopAtLine runs a command, sends a signal once a file has so many lines, and returns the exit code.
func stopAtLine(ts *testscript.TestScript, neg bool, args []string, signal os.Signal) int {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: METRICS LINES COMMAND [ARGUMENT...]")
	}
	lines, err := strconv.Atoi(args[1])
	ts.Check(err)
	// The script's environment has the PATH on which the program lies.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$0" "$@"`}, args[2:]...)...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	ts.Check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if err := awaitLines(ts.MkAbs(args[0]), lines, done); err != nil {
		_ = cmd.Process.Kill() // it may have ended
		ts.Fatalf("%v\n%s", err, stderr.String())
	}
	ts.Check(cmd.Process.Signal(signal))
	code := exitCodeOf(ts, <-done)
	ts.Check(os.WriteFile(ts.MkAbs("stderr.txt"), stderr.Bytes(), 0o600))
	return code
}

func awaitLines(path string, lines int, done <-chan error) error {
	deadline := time.After(interruptDeadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Count(text, []byte("\n")) >= lines {
			return nil
		}
		select {
		case err := <-done:
			return fmt.Errorf("it ended before it could be interrupted: %v", err)
		case <-deadline:
			return fmt.Errorf("%s has fewer than %d lines after %v", path, lines, interruptDeadline)
		case <-tick.C:
		}
	}
}

// scriptCut cuts a file to a share of its bytes: cut FILE PERCENT
func scriptCut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cut FILE PERCENT")
	}
	percent, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), info.Size()*percent/100))
}

// scriptFlip changes one bit in the middle of a file: flip FILE
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip FILE")
	}
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// scriptSame wants the lines of two runs' metrics to have equal counts: the same records in the same steps, whatever the
// losses are: same METRICS METRICS
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: same METRICS METRICS")
	}
	counts := func(path string) []string {
		var lines []string
		for line := range strings.Lines(ts.ReadFile(path)) {
			var l struct {
				Step, Targets, Tokens, Examples, Packs int64
				Epoch                                  float64
			}
			ts.Check(json.Unmarshal([]byte(line), &l))
			lines = append(lines, fmt.Sprintf("%+v", l))
		}
		return lines
	}
	a, b := counts(args[0]), counts(args[1])
	if len(a) == 0 || !slices.Equal(a, b) {
		ts.Fatalf("%s:\n%s\n%s:\n%s", args[0], strings.Join(a, "\n"), args[1], strings.Join(b, "\n"))
	}
}

// scriptEqual wants two runs' metrics to be equal, but for what depends on time: equal METRICS METRICS
func scriptEqual(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: equal METRICS METRICS")
	}
	timeless := func(path string) []string {
		var lines []string
		for line := range strings.Lines(ts.ReadFile(path)) {
			var m map[string]any
			ts.Check(json.Unmarshal([]byte(line), &m))
			for _, key := range []string{"time", "seconds", "tokens_per_s", "target_tokens_per_s", "memory_bytes"} {
				delete(m, key)
			}
			text, err := json.Marshal(m)
			ts.Check(err)
			lines = append(lines, string(text))
		}
		return lines
	}
	a, b := timeless(args[0]), timeless(args[1])
	if len(a) == 0 || !slices.Equal(a, b) {
		ts.Fatalf("%s:\n%s\n%s:\n%s", args[0], strings.Join(a, "\n"), args[1], strings.Join(b, "\n"))
	}
}

// nearLoss is how far apart losses of the same steps on two devices may be that both compute in F32: only orders of sums differ.
const nearLoss = 1e-5

// scriptNear wants two runs' metrics to have equal counts, and losses that are equal but for rounding: near METRICS METRICS [RELATIVE]
func scriptNear(ts *testscript.TestScript, neg bool, args []string) {
	within := nearLoss
	if len(args) == 3 {
		var err error
		within, err = strconv.ParseFloat(args[2], 64)
		ts.Check(err)
		args = args[:2]
	}
	scriptSame(ts, neg, args)
	losses := func(path string) []float64 {
		var all []float64
		for line := range strings.Lines(ts.ReadFile(path)) {
			var l struct{ Loss float64 }
			ts.Check(json.Unmarshal([]byte(line), &l))
			all = append(all, l.Loss)
		}
		return all
	}
	a, b := losses(args[0]), losses(args[1])
	for i := range a {
		if !(a[i] > 0 && math.Abs(a[i]-b[i]) < within*a[i]) {
			ts.Fatalf("%s: %v\n%s: %v", args[0], a, args[1], b)
		}
	}
}

// timesOfReports are what two reports of one study may differ in.
var timesOfReports = regexp.MustCompile(`"(started|seconds)": [^,\n]*|begun [0-9: -]*|(?m:^\| \S+ \| \d+ \| \d+ to \d+ \| \d+ \| \d+)`)

// timelessReports returns a study's three reports without times.
func timelessReports(dir string) (map[string]string, error) {
	reports := map[string]string{}
	for _, name := range []string{"report.json", "report.md", "report.html"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		reports[name] = timesOfReports.ReplaceAllStringFunc(string(text), func(found string) string {
			if strings.HasPrefix(found, "|") {
				return found[:strings.LastIndexByte(found, '|')] // seconds are the last column that was found
			}
			return found[:strings.IndexByte(found, ' ')]
		})
	}
	return reports, nil
}

// scriptSameReports wants two studies to say the same, to the byte, but for times: samereports STUDY STUDY
func scriptSameReports(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: samereports STUDY STUDY")
	}
	a, err := timelessReports(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := timelessReports(ts.MkAbs(args[1]))
	ts.Check(err)
	for name := range a {
		if a[name] != b[name] {
			ts.Check(os.WriteFile(ts.MkAbs("a.txt"), []byte(a[name]), 0o600))
			ts.Check(os.WriteFile(ts.MkAbs("b.txt"), []byte(b[name]), 0o600))
			_ = ts.Exec("diff", "a.txt", "b.txt") // prints it
			ts.Fatalf("%s of %s and of %s differ", name, args[0], args[1])
		}
	}
}
