package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
)

// revision is what `git describe` says of the checkout, set by the Makefile: Go itself writes it into a binary only where it may
// look at the checkout.
var revision string

// versionReport is what `version` prints.
type versionReport struct {
	Version   string   `json:"version"`  // of the module; "(devel)" where it was built from a checkout
	Revision  string   `json:"revision"` // of that checkout, "" if unknown
	Modified  bool     `json:"modified"` // the checkout had changes
	Go        string   `json:"go"`
	Platform  string   `json:"platform"`
	Libraries []string `json:"libraries"`
	CPU       string   `json:"cpu"` // instruction sets that our kernels use
}

func newVersionReport() versionReport {
	r := versionReport{
		Version:   "(devel)",
		Go:        runtime.Version(),
		Platform:  runtime.GOOS + "/" + runtime.GOARCH,
		Libraries: engine.LibraryVersions(),
		CPU:       engine.CPUFeatures(),
	}
	r.Revision, r.Modified = strings.CutSuffix(revision, "-dirty")
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return r
	}
	if info.Main.Version != "" {
		r.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			r.Revision = s.Value
		case "vcs.modified":
			r.Modified = s.Value == "true"
		}
	}
	return r
}

// checkout names the revision, and says if it had changes; empty if unknown.
func (r versionReport) checkout() string {
	if r.Modified {
		return r.Revision + " with changes"
	}
	return r.Revision
}

func (r versionReport) print(out io.Writer) error {
	revision := r.checkout()
	if revision != "" {
		revision = " (" + revision + ")"
	}
	if _, err := fmt.Fprintf(out, "cftune %s%s\n%s %s, CPU kernels for %s\n", r.Version, revision, r.Go, r.Platform, r.CPU); err != nil {
		return err
	}
	for _, library := range r.Libraries {
		if _, err := fmt.Fprintln(out, library); err != nil {
			return err
		}
	}
	return nil
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of cftune and of the libraries underneath",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(newVersionReport())
			}
			return newVersionReport().print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
