package dashboard

import (
	"fmt"
	"slices"

	"cftune/trainer/chart"
	"cftune/trainer/config"
	"cftune/trainer/runs"
)

// maxCompared is how many runs are told apart by their colors.
var maxCompared = len(chart.Colors)

// comparePage is what the page of several runs shows.
type comparePage struct {
	common
	Rows    []row
	Figures []figure
	Keys    []key
	Differ  []difference
	Same    int // keys that all runs have alike
	Note    string
}

// difference is a key on which runs differ, with the value of each.
type difference struct {
	Key    string
	Values []string
}

func compare(list []*run) comparePage {
	p := comparePage{}
	if len(list) > maxCompared {
		p.Note = fmt.Sprintf("%d runs were chosen; the first %d are shown", len(list), maxCompared)
		list = list[:maxCompared]
	}
	p.Title = fmt.Sprintf("%d runs compared", len(list))
	var losses, held []line
	for i, r := range list {
		p.Rows = append(p.Rows, r.row())
		p.Keys = append(p.Keys, key{r.name, i})
		p.Live = p.Live || r.standing.State == runs.Running
		losses = append(losses, line{name: r.name, curve: &r.series.steps, column: columnLoss, number: i, smooth: true})
		for _, v := range r.series.validations {
			if v.objective == "" {
				held = append(held, line{name: r.name, curve: &v.curve, number: i})
			}
		}
	}
	add := func(title, label string, lines []line, over axis) {
		f := figure{Title: title, Wide: true, Picture: picture{label: label, lines: lines, over: over, text: number,
			width: wide, height: wideHeight, columns: wideColumns}.draw()}
		if f.Picture != "" {
			p.Figures = append(p.Figures, f)
		}
	}
	add("Loss over steps", "loss of the runs by step", losses, overSteps)
	add("Validation loss", "validation loss of the runs by step", held, overSteps)
	add("Loss over tokens", "loss of the runs by tokens", losses, overTokens)
	add("Loss over time", "loss of the runs by time of training", losses, overTime)
	p.Differ, p.Same = differences(list)
	return p
}

// differences lists the keys on which the runs' configurations differ.
func differences(list []*run) (differ []difference, same int) {
	var values [][]config.Setting
	for _, r := range list {
		if r.record == nil {
			values = append(values, nil)
			continue
		}
		values = append(values, config.Settings(r.record.Config))
	}
	at := slices.IndexFunc(values, func(f []config.Setting) bool { return f != nil })
	if at < 0 {
		return nil, 0
	}
	for i, field := range values[at] {
		d := difference{Key: field.Key}
		for _, fields := range values {
			if fields == nil {
				d.Values = append(d.Values, "?")
			} else {
				d.Values = append(d.Values, value(fields[i].Value))
			}
		}
		if len(slices.Compact(slices.Clone(d.Values))) > 1 {
			differ = append(differ, d)
		} else {
			same++
		}
	}
	return differ, same
}
