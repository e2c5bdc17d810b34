package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/internal/spell"
	"cftune/trainer/config"
)

// doctorReport is what `doctor` prints.
type doctorReport struct {
	Version versionReport   `json:"version"`
	Devices []engine.Device `json:"devices"`
	CUDA    string          `json:"cuda"` // how many devices there are, or why there are none
	// SGEMM is the best rate of single-precision matrix products seen on all cores, in FLOP per second.
	SGEMM float64    `json:"sgemm_flops"`
	Run   *runReport `json:"run,omitempty"`
}

// runReport tells what a configuration would take.
type runReport struct {
	Config     string                `json:"config"`
	Model      string                `json:"model"`
	Info       engine.ModelInfo      `json:"info"`
	Memory     engine.MemoryEstimate `json:"memory"`
	Keep       string                `json:"keep_activations"` // what auto chose
	Buffers    uint64                `json:"buffers"`          // bytes: all but the mapped weights, which may be dropped and read again
	Available  uint64                `json:"available"`        // bytes for buffers: limits.memory, or most of what is free
	Limited    bool                  `json:"limited"`          // by limits.memory
	OnDevice   bool                  `json:"on_device"`        // of its own memory: buffers are then all, weights included
	Fits       bool                  `json:"fits"`
	WouldFit   []fitting             `json:"would_fit,omitempty"` // where it does not fit
	KeepsAll   *fitting              `json:"keeps_all,omitempty"` // where activations do not all fit a device: shorter packs, whose do
	Check      *agreement            `json:"check,omitempty"`     // of the device, if asked for
	fromConfig config.Run
}

// fitting is a change of settings with which the run fits.
type fitting struct {
	Settings []string `json:"settings"` // "train.seq_len=512", as --set takes them
	Buffers  uint64   `json:"buffers"`  // bytes
}

// usableMemory is the share of the free memory that the engine takes for buffers where no limit is set.
const usableMemory = 0.9

// usableDeviceMemory is the same for a device's own memory.
const usableDeviceMemory = 0.95

// buffers is what a limit is compared with.
func buffers(e engine.MemoryEstimate) uint64 { return e.Total - e.Weights }

func newDoctorCommand() *cobra.Command {
	var (
		path   string
		sets   []string
		check  bool
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show devices, libraries and speed, and what a configuration would take",
		Long: `Show the devices that were found, the libraries, and this machine's rate of matrix products. With --config, show what
the run would take of memory, part by part; if that does not fit, name settings with which it would and exit with 5.

With --check-device too, compute the loss and all gradients of the run's adapter over its model, of up to 512 random tokens, on the run's device and
on the CPU, and exit with 5 if they are not alike: worth its minute (for 8 billion parameters) before a long run on a kind of device that nobody has
trained on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := examine(cmd, path, sets, check)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(report)
			} else {
				err = report.print(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if r := report.Run; r != nil && !r.Fits {
				return codedError{fmt.Errorf("doctor: %s: needs %s of buffers, available are %s", path, spell.Size(r.Buffers), spell.Size(r.Available)), codeDevice}
			}
			if r := report.Run; r != nil && r.Check != nil && len(r.Check.Wrong) > 0 {
				return codedError{fmt.Errorf("doctor: %s: %w", path, r.Check.err()), codeDevice}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration of a run")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "override a key of the configuration (key=value)")
	cmd.Flags().BoolVar(&check, "check-device", false, "compare the device's gradients with the CPU's")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func examine(cmd *cobra.Command, path string, sets []string, check bool) (doctorReport, error) {
	report := doctorReport{Version: newVersionReport()}
	var run config.Run
	if path == "" && len(sets) > 0 {
		return report, codedError{errors.New("doctor: --set needs --config"), codeUsage}
	}
	if path == "" && check {
		return report, codedError{errors.New("doctor: --check-device needs --config"), codeUsage}
	}
	if path != "" { // refused before anything is measured
		var err error
		if run, err = loadConfig(cmd.Context(), path, sets); err != nil {
			return report, err
		}
		if run, err = localModel(cmd.Context(), run, cmd.ErrOrStderr()); err != nil {
			return report, fmt.Errorf("doctor: %w", err)
		}
	}
	var err error
	if report.Devices, err = engine.Devices(); err != nil {
		return report, engineError(fmt.Errorf("doctor: %w", err))
	}
	report.CUDA = engine.CUDAState()
	const square = 1024 // large enough for the full rate, and over in a moment
	if report.SGEMM, err = engine.BenchSGEMM(square, square, square, run.Threads); err != nil {
		return report, engineError(fmt.Errorf("doctor: %w", err))
	}
	if path != "" {
		if check && onCPU(run.Device, report.Devices) {
			return report, codedError{fmt.Errorf("doctor: %s: --check-device compares a device with the CPU, and the run's is the CPU", path), codeUsage}
		}
		if report.Run, err = examineRun(path, run, report.Devices); err != nil {
			return report, engineError(fmt.Errorf("doctor: %s: %w", path, err))
		}
		if check && report.Run.Fits {
			if report.Run.Check, err = checkDevice(cmd.Context(), run, report.Run.Info); err != nil {
				return report, engineError(fmt.Errorf("doctor: %s: %w", path, err))
			}
		}
	}
	return report, nil
}

func examineRun(path string, run config.Run, devices []engine.Device) (*runReport, error) {
	params, err := engineParams(run)
	if err != nil {
		return nil, codedError{err, codeUsage}
	}
	model, err := engine.Load(run.Model, run.Device)
	if err != nil {
		return nil, err
	}
	defer model.Close()
	r := &runReport{Config: path, Model: run.Model, fromConfig: run}
	if r.Info, err = model.Info(); err != nil {
		return nil, err
	}
	if r.Memory, err = model.EstimateMemory(params); err != nil {
		return nil, paramsError(err)
	}
	need := buffers
	where := deviceOf(devices, run.Device)
	if r.OnDevice = where != nil && !onCPU(run.Device, devices); r.OnDevice {
		need = func(e engine.MemoryEstimate) uint64 { return e.Total } // weights lie there as well
	}
	r.Keep, r.Buffers = r.Memory.Keep.String(), need(r.Memory)
	r.Available, r.Limited = params.MemoryLimit, params.MemoryLimit > 0
	if where != nil && !r.Limited {
		share := usableMemory
		if r.OnDevice {
			share = usableDeviceMemory
		}
		r.Available = uint64(float64(where.MemoryFree) * share)
	}
	if r.Fits = r.Buffers <= r.Available; !r.Fits {
		if r.WouldFit, err = whatWouldFit(model, params, r.Available, need); err != nil {
			return nil, err
		}
	} else if r.OnDevice && r.Memory.ComputedAgain > 0 && r.Memory.Keep != engine.KeepAll && params.Keep == engine.KeepAuto {
		r.KeepsAll, err = turnDown(model, params, []saving{shorterPacks}, need, func(e engine.MemoryEstimate) bool {
			return e.Keep == engine.KeepAll && e.Streamed <= r.Memory.Streamed && need(e) <= r.Available
		})
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

// deviceOf returns the device that a configuration's name means, as the engine reads it; nil if it is not here.
func deviceOf(devices []engine.Device, name string) *engine.Device {
	backend := strings.ToLower(name)
	if backend == "auto" || backend == "" {
		backend = "cpu"
		for i, d := range devices {
			if d.Name == "CUDA0" && d.CanTrain && !d.Portable {
				return &devices[i]
			}
		}
	}
	backend = strings.TrimPrefix(backend, "ggml-")
	bare := strings.TrimRight(backend, "0123456789")
	number := cmp.Or(strings.TrimPrefix(backend, bare), "0")
	bare = strings.TrimSuffix(bare, ":")
	if bare == "hip" {
		bare = "rocm" // ggml's name for it
	}
	for i, d := range devices {
		if strings.EqualFold(d.Name, bare+number) || number == "0" && strings.EqualFold(d.Name, bare) {
			return &devices[i]
		}
	}
	return nil
}

// onCPU tells whether a configuration's device is the CPU engine.
func onCPU(name string, devices []engine.Device) bool {
	where := deviceOf(devices, name)
	return where != nil && where.Name == "CPU" && !isGGML(name)
}

// isGGML tells whether a configuration's device is one of ggml's by its general name. So ggml-cpu, which holds weights and
// buffers as other devices do, is not the engine's own device on the CPU.
func isGGML(name string) bool { return strings.HasPrefix(strings.ToLower(name), "ggml-") }

// saving is a setting that can be turned down, step by step, to save memory.
type saving struct {
	key string
	// down takes one step and returns the new value, or false where there is none left.
	down func(*engine.Params) (value string, ok bool)
}

var savings = []saving{
	{"train.keep_activations", func(p *engine.Params) (string, bool) {
		ok := p.Keep != engine.KeepLayers
		p.Keep = engine.KeepLayers
		return p.Keep.String(), ok
	}},
	shorterPacks,
	{"adapter.rank", func(p *engine.Params) (string, bool) { return halve(&p.Rank, 1) }},
}

var shorterPacks = saving{"train.seq_len", func(p *engine.Params) (string, bool) {
	const shortest = 64 // tokens; shorter packs are no training
	return halve(&p.MaxTokens, shortest)
}}

func halve(setting *int, least int) (string, bool) {
	if *setting/2 < least {
		return "", false
	}
	*setting /= 2
	return strconv.Itoa(*setting), true
}

// whatWouldFit turns settings down: each on its own as far as it must go, or, where none does it alone, all together.
func whatWouldFit(model *engine.Model, params engine.Params, available uint64, need func(engine.MemoryEstimate) uint64) ([]fitting, error) {
	fits := func(e engine.MemoryEstimate) bool { return need(e) <= available }
	var found []fitting
	try := func(settings []saving) error {
		f, err := turnDown(model, params, settings, need, fits)
		if f != nil {
			found = append(found, *f)
		}
		return err
	}
	for _, s := range savings {
		if err := try([]saving{s}); err != nil {
			return nil, err
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return found, try(savings)
}

// turnDown takes a step of each setting in turn until the estimate is good; it returns nil if it never is.
func turnDown(model *engine.Model, p engine.Params, settings []saving, need func(engine.MemoryEstimate) uint64,
	good func(engine.MemoryEstimate) bool) (*fitting, error) {
	values := map[string]string{}
	for again := true; again; {
		again = false
		for _, s := range settings {
			value, ok := s.down(&p)
			if !ok {
				continue
			}
			again = true
			values[s.key] = value
			e, err := model.EstimateMemory(p)
			if err != nil {
				return nil, err
			}
			if good(e) {
				f := &fitting{Buffers: need(e)}
				for _, key := range slices.Sorted(maps.Keys(values)) {
					f.Settings = append(f.Settings, key+"="+values[key])
				}
				return f, nil
			}
		}
	}
	return nil, nil
}

func (r doctorReport) print(out io.Writer) error {
	if err := r.Version.print(out); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\ndevice\tdescription\tfree\ttotal\ttrains")
	for _, d := range r.Devices {
		trains := "no"
		switch {
		case d.Portable:
			trains = "portable path"
		case d.CanTrain:
			trains = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, d.Description, spell.Size(d.MemoryFree), spell.Size(d.MemoryTotal), trains)
	}
	fmt.Fprintf(w, "\nCUDA: %s\n", r.CUDA)
	if slices.ContainsFunc(r.Devices, func(d engine.Device) bool { return d.Portable }) {
		fmt.Fprintln(w, "portable path: training by ggml's ops (device: vulkan, metal, hip; docs/devices.md)")
	}
	fmt.Fprintf(w, "\nmatrix products: %.1f GFLOP/s (single precision)\n", r.SGEMM/1e9)
	if r.Run != nil {
		r.Run.print(w)
	}
	return w.Flush() // the writer keeps the first error of all that was written
}

func (r runReport) print(w io.Writer) {
	m := r.Info
	fmt.Fprintf(w, "\n%s: %s, %d layers of %d, %.1fM parameters\n", r.Model, m.Architecture, m.Layers, m.Embedding, float64(m.NumberParameters)/1e6)
	fmt.Fprintf(w, "%s; packs of %d tokens, activations kept: %s\n\n", r.fromConfig.Adapter.Describe(), r.fromConfig.Train.SeqLen, keptText(r.Memory))
	weights, whole, source := "weights (mapped)", "buffers (all but weights)", "available for them"
	if r.OnDevice {
		weights, whole, source = "weights", "on the device", "available there"
	}
	for _, part := range []struct {
		name  string
		bytes uint64
	}{
		{weights, r.Memory.Weights},
		{"adapter", r.Memory.Adapter},
		{"gradients", r.Memory.Gradients},
		{"moments", r.Memory.Moments},
		{"activations", r.Memory.Activations},
		{"workspace", r.Memory.Workspace},
		{"loss", r.Memory.Loss},
		{"total", r.Memory.Total},
		{whole, r.Buffers},
	} {
		fmt.Fprintf(w, "%s\t%s\n", part.name, spell.Size(part.bytes))
	}
	if r.Memory.Streamed > 0 {
		fmt.Fprintf(w, "on the host\t%s of weights, copied to the device for each use\n", spell.Size(r.Memory.Streamed))
	}
	if r.Memory.Offloaded > 0 {
		fmt.Fprintf(w, "on the host\t%s of activations, between forward and backward\n", spell.Size(r.Memory.Offloaded))
	}
	if r.Limited {
		source = "limits.memory"
	}
	fmt.Fprintf(w, "%s\t%s\n", source, spell.Size(r.Available))
	switch {
	case r.Fits:
		fmt.Fprintln(w, "\nThe run fits.")
		if r.Check != nil {
			r.Check.print(w)
		}
		if r.KeepsAll != nil {
			nothing := "nothing"
			if r.fromConfig.Adapter.DoRA {
				nothing = "nothing but DoRA's part"
			}
			fmt.Fprintf(w, "With --set %s %s is computed again; the same examples are in more packs then. That may be faster.\n", r.KeepsAll.Settings[0], nothing)
		}
	case len(r.WouldFit) == 0:
		fmt.Fprintln(w, "\nThe run does not fit, with any setting.")
	default:
		fmt.Fprintln(w, "\nThe run does not fit. It would with:")
		for _, f := range r.WouldFit {
			fmt.Fprint(w, " ")
			for _, s := range f.Settings {
				fmt.Fprintf(w, " --set %s", s)
			}
			fmt.Fprintf(w, "\t%s\n", spell.Size(f.Buffers))
		}
	}
}

// keptText tells which activations are kept; on a CUDA device also what the others cost.
func keptText(m engine.MemoryEstimate) string {
	switch again := 100 * m.ComputedAgain; {
	case again == 0:
		return m.Keep.String()
	case m.Keep == engine.KeepAll:
		return fmt.Sprintf("all; DoRA computes %.0f %% of the layers' products again", again)
	default:
		return fmt.Sprintf("as fits, %.0f %% of the layers' products are computed again", again)
	}
}
