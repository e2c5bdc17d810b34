package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"cftune/trainer/critic"
)

// askDisplay shows how far a run is: a line that is drawn over on a terminal, a line now and then elsewhere.
type askDisplay struct {
	w        io.Writer
	kind     string
	budget   critic.Money
	costs    bill
	terminal bool
	quiet    bool

	mu       sync.Mutex
	began    time.Time
	before   critic.Tally // when this process began
	said     time.Time
	drawn    bool
	lastLine string
}

// saidEvery is how often a log gets a line.
const saidEvery = 10 * time.Second

func newAskDisplay(w io.Writer, kind string, budget critic.Money, costs bill, quiet bool) *askDisplay {
	f, ok := w.(*os.File)
	return &askDisplay{w: w, kind: kind, budget: budget, costs: costs, terminal: ok && hasSize(f), quiet: quiet}
}

func (d *askDisplay) begin(before critic.Tally) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.began, d.before, d.said = time.Now(), before, time.Now()
	if before.Answered > 0 || before.Unknown > 0 {
		text := fmt.Sprintf("goes on: %d requests are answered already%s", before.Answered, d.costs.text(before.Spent))
		if before.Unknown > 0 {
			text += fmt.Sprintf("; %d unknown after a kill (they may have been paid; asked again under the same keys)", before.Unknown)
		}
		d.print(text)
	}
}

func (d *askDisplay) observe(p critic.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := d.text(p)
	switch {
	case d.quiet:
	case d.terminal:
		fmt.Fprintf(d.w, "\r%s\x1b[K", line)
		d.drawn = true
	case time.Since(d.said) >= saidEvery:
		d.said = time.Now()
		fmt.Fprintln(d.w, line)
	}
	d.lastLine = line
}

func (d *askDisplay) text(p critic.Progress) string {
	t := p.Tally
	line := fmt.Sprintf("%s: %d/%d", d.kind, t.Answered, p.Jobs)
	if d.terminal {
		const width = 24
		full := width * t.Answered / max(1, p.Jobs)
		line += fmt.Sprintf(" [%s%s]", stripe('=', full), stripe(' ', width-full))
	}
	if n := t.Answered - d.before.Answered; n > 0 {
		each := time.Since(d.began) / time.Duration(n)
		line += fmt.Sprintf(", %s, ETA %s", pace(each), (each * time.Duration(p.Jobs-t.Answered)).Round(time.Second))
	}
	if d.costs.priced || t.Spent > 0 {
		line += ", " + t.Spent.String()
	}
	if d.budget > 0 {
		line += " of " + d.budget.String()
	}
	if t.Possible > 0 {
		line += fmt.Sprintf(" (+%s maybe)", t.Possible)
	}
	faults := 0
	for _, n := range t.Faults {
		faults += n
	}
	if faults > 0 {
		line += fmt.Sprintf(", %d faults", faults)
	}
	return line
}

// pace is a rate in the unit in which it is a number that can be read: that of a local model may be a request in a minute.
func pace(each time.Duration) string {
	each = max(1, each)
	for _, unit := range []struct {
		span time.Duration
		name string
	}{{time.Second, "s"}, {time.Minute, "min"}} {
		if rate := float64(unit.span) / float64(each); rate >= 1 {
			return fmt.Sprintf("%.1f/%s", rate, unit.name)
		}
	}
	return fmt.Sprintf("%.1f/h", float64(time.Hour)/float64(each))
}

func stripe(c byte, n int) []byte {
	line := make([]byte, n)
	for i := range line {
		line[i] = c
	}
	return line
}

func (d *askDisplay) note(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.print(text)
}

// print shows a line of its own. The caller has the lock.
func (d *askDisplay) print(text string) {
	if d.quiet {
		return
	}
	if d.drawn {
		fmt.Fprint(d.w, "\r\x1b[K")
		d.drawn = false
	}
	fmt.Fprintln(d.w, text)
}

// end leaves the last line standing.
func (d *askDisplay) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quiet || d.lastLine == "" {
		return
	}
	if d.drawn {
		fmt.Fprintln(d.w)
	} else {
		fmt.Fprintln(d.w, d.lastLine)
	}
	d.drawn = false
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
