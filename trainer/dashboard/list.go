package dashboard

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"cftune/internal/spell"
	"cftune/trainer/runs"
)

// row is a line of the list.
type row struct {
	ID, Name, Stage, Model, Adapter string
	Standing                        runs.Standing
	Step, Steps                     int
	Left                            string
	Loss, Best                      string
	BestStep                        int
	Speed                           string
	Spark                           template.HTML
	Written                         time.Time
	Problem                         string

	loss, best, speed float64
}

// Percent is how much of the run is done.
func (r row) Percent() int {
	if r.Steps == 0 {
		return 0
	}
	return min(100, 100*r.Step/r.Steps)
}

func (r *run) row() row {
	s := &r.series
	w := row{
		ID: r.id, Name: r.name, Standing: r.standing, Step: s.last.Step, Steps: r.steps(), Loss: "–", Best: "–", Speed: "–",
		Spark: spark(&s.steps, columnLoss), Written: r.written(),
	}
	if len(r.problems) > 0 {
		w.Problem = discreet(r.problems[0])
	}
	if r.record != nil {
		w.Model, w.Adapter = model(r.record.Model.Path), r.record.Config.Adapter.Describe()
	}
	if w.Step > 0 {
		w.Stage = r.stageText(s.last.Stage)
		w.loss, w.speed = r.lossNow(), s.last.TokensPerS
		w.Loss, w.Speed = spell.Loss(w.loss), fmt.Sprintf("%.0f", w.speed)
	}
	if s.best.Targets > 0 {
		w.best, w.Best, w.BestStep = s.best.Loss, spell.Loss(s.best.Loss), s.best.Step
	}
	if left := r.left(); left > 0 {
		w.Left = lasting(left)
	}
	return w
}

// lossNow is the smoothed loss at the last step: single steps' losses jump.
func (r *run) lossNow() float64 {
	smoothed := smooth(r.series.steps.buckets, columnLoss)
	return smoothed[len(smoothed)-1]
}

// header is a column of the list; its link sorts by it.
type header struct {
	Title   string
	Numeric bool
	Sorted  string // ascending, descending or empty
	Link    string
}

// order is a way to sort rows. Where most is wanted first, it is turned around.
type order struct {
	key, title    string
	numeric, most bool
	less          func(a, b row) int
}

var orders = []order{
	{"name", "run", false, false, func(a, b row) int { return strings.Compare(a.Name, b.Name) }},
	{"state", "state", false, false, func(a, b row) int { return cmp.Compare(stateOrder(a.Standing.State), stateOrder(b.Standing.State)) }},
	{"step", "step", false, true, func(a, b row) int { return cmp.Compare(a.Step, b.Step) }},
	{"loss", "loss, smoothed", true, false, func(a, b row) int { return cmp.Compare(last(a.loss), last(b.loss)) }},
	{"best", "best validation", true, false, func(a, b row) int { return cmp.Compare(last(a.best), last(b.best)) }},
	{"speed", "tokens/s", true, true, func(a, b row) int { return cmp.Compare(a.speed, b.speed) }},
	{"model", "model, adapter", false, false, func(a, b row) int {
		return cmp.Or(strings.Compare(a.Model, b.Model), strings.Compare(a.Adapter, b.Adapter))
	}},
	{"written", "last written", false, true, func(a, b row) int { return a.Written.Compare(b.Written) }},
}

func stateOrder(state string) int {
	return slices.Index([]string{runs.Running, runs.Damaged, runs.Stopped, runs.Ended, runs.Done}, state)
}

// last sorts what is not known behind all that is.
func last(v float64) float64 {
	if v == 0 {
		return 1e300
	}
	return v
}

// listPage is what the list shows.
type listPage struct {
	common
	Folders []string
	Notes   []string
	Headers []header
	Rows    []row
}

// list makes the list page. sort is a key of orders, with a minus before it the other way around; anything else is "written".
func (x *Index) list(sort string) listPage {
	key, turned := strings.CutPrefix(sort, "-")
	at := slices.IndexFunc(orders, func(o order) bool { return o.key == key })
	if at < 0 {
		at, turned = len(orders)-1, false
	}
	p := listPage{Folders: x.folders}
	for _, n := range x.notes {
		p.Notes = append(p.Notes, discreet(n))
	}
	for _, r := range x.runs {
		p.Rows = append(p.Rows, r.row())
		p.Live = p.Live || r.standing.State == runs.Running
	}
	by := orders[at]
	descending := by.most != turned
	slices.SortStableFunc(p.Rows, func(a, b row) int {
		n := by.less(a, b)
		if descending {
			n = -n
		}
		return n
	})
	for i, o := range orders {
		h := header{Title: o.title, Numeric: o.numeric, Link: o.key}
		if i == at {
			h.Sorted = map[bool]string{true: "descending", false: "ascending"}[descending]
			if !turned {
				h.Link = "-" + o.key
			}
		}
		p.Headers = append(p.Headers, h)
	}
	p.Title = counted(int64(len(p.Rows)), "run", "runs")
	return p
}
