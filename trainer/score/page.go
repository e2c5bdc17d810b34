package score

import (
	_ "embed"
	"html/template"
	"io"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// Page writes the report as one HTML file that needs nothing else.
func (r Report) Page(w io.Writer) error {
	type probe struct {
		Name  string
		Texts []ProbeItem
	}
	var probes []probe
	var names []string
	for _, result := range r.Results {
		names = append(names, result.Subject.Name)
		if result.Probes == nil {
			continue
		}
		for i, item := range result.Probes.Items {
			if i == len(probes) {
				probes = append(probes, probe{Name: item.Name})
			}
			probes[i].Texts = append(probes[i].Texts, item)
		}
	}
	return page.Execute(w, map[string]any{"Report": r, "Tables": r.Tables(), "Notes": r.Notes(), "Probes": probes, "Names": names})
}
