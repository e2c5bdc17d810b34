package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	"cftune/trainer/checkpoint"
	"cftune/trainer/dashboard"
	"cftune/trainer/export"
)

const dashboardLong = `Show runs as web pages: a list, each run's curves, runs beside each other.

    cftune dashboard runs/
    cftune dashboard runs/first --output first.html

The pages are for browsers on this machine, at the address that is written to standard output; from another machine,
ssh -L 8080:127.0.0.1:8080 HOST leads there. Ctrl-C ends it. Runs are only read, also while they train, here or on another machine
over a shared folder. With --output, one page that needs nothing else is written instead; without a run,
that ends with exit code 4. Code 2: a folder is missing, or the address is taken.

`

type dashboardCommand struct {
	listen, output string
	hosts          []string
	force          bool
}

func newDashboardCommand() *cobra.Command {
	var d dashboardCommand
	cmd := &cobra.Command{
		Use:   "dashboard [FOLDER...]",
		Short: "Show runs and their curves in a browser (default folder: runs)",
		Long:  dashboardLong + exitCodesHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"runs"}
			}
			index, err := dashboard.NewIndex(args...)
			if err != nil {
				return codedError{err, codeUsage}
			}
			if d.output != "" {
				if cmd.Flags().Changed("listen") {
					return codedError{errors.New("--output writes a page and --listen serves pages: name one"), codeUsage}
				}
				return d.write(cmd.OutOrStdout(), index, args)
			}
			return d.serve(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), index)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.listen, "listen", "127.0.0.1:8080", "the address for browsers; port 0 takes a free one")
	f.StringSliceVar(&d.hosts, "allow-host", nil, "more names that browsers may call this server by")
	f.StringVar(&d.output, "output", "", "write one page that stands alone to this file, and end")
	f.BoolVar(&d.force, "force", false, "replace an existing file")
	return cmd
}

func (d *dashboardCommand) serve(ctx context.Context, out, errs io.Writer, index *dashboard.Index) error {
	if _, _, err := net.SplitHostPort(d.listen); err != nil {
		return codedError{fmt.Errorf("--listen must be ADDRESS:PORT: %w", err), codeUsage}
	}
	server, err := dashboard.Listen(index, d.listen, d.hosts...)
	if err != nil {
		return err
	}
	if !server.Loopback() {
		fmt.Fprintln(errs, "warning: whoever reaches this address sees the runs, with their settings and paths")
	}
	if index.Len() == 0 {
		fmt.Fprintln(errs, "note: there is no run yet; the page shows runs once they begin")
	}
	fmt.Fprintln(out, server.URL())
	return server.Serve(ctx)
}

func (d *dashboardCommand) write(out io.Writer, index *dashboard.Index, folders []string) error {
	if index.Len() == 0 {
		return fmt.Errorf("dashboard: no run below %v: %w", folders, checkpoint.ErrNotFound)
	}
	if err := writable(d.output); err != nil {
		return fmt.Errorf("dashboard: %w", err)
	}
	if _, err := os.Lstat(d.output); err == nil && !d.force {
		return fmt.Errorf("dashboard: %s: %w", d.output, export.ErrExists)
	}
	if err := index.WriteFile(d.output); err != nil {
		return codedError{err, codeUsage}
	}
	_, err := fmt.Fprintln(out, d.output)
	return err
}
