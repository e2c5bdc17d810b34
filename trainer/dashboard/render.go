package dashboard

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"cftune/trainer/chart"
	"cftune/trainer/internal/durable"
	"cftune/trainer/report"
)

//go:embed assets/page.html
var pageSource string

//go:embed assets/page.css
var pageStyle string

//go:embed assets/page.js
var pageScript string

// common is what every page has.
type common struct {
	Title  string
	Static bool // the page stands alone
	Live   bool // something on it trains
	// Tag tells the page's state from others; the script asks whether there is another.
	Tag string
}

// The seconds between two looks of an open page.
const (
	liveRefresh = 3
	idleRefresh = 20
)

// Refresh is after how many seconds the page asks whether there is something new.
func (c common) Refresh() int {
	if c.Live {
		return liveRefresh
	}
	return idleRefresh
}

// style is that of all pages of this program, with what these have in addition.
func style() template.CSS {
	var b strings.Builder
	b.WriteString(string(report.Style()) + pageStyle)
	for i, color := range chart.Colors {
		fmt.Fprintf(&b, ".%s { background: %s; }\n", colorClass(i), color)
	}
	return template.CSS(b.String()) // of our own, not of anybody's input
}

// staticPolicy lets a page that stands alone use its own style and script, and fetch nothing.
func staticPolicy() string {
	sum := sha256.Sum256([]byte(pageScript))
	return fmt.Sprintf("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-%s'; base-uri 'none'; form-action 'none'", base64.StdEncoding.EncodeToString(sum[:]))
}

var pages = template.Must(template.New("page").Funcs(template.FuncMap{
	"style": style, "script": func() template.JS { return template.JS(pageScript) }, "staticPolicy": staticPolicy,
	"timeText": timeText, "colorClass": colorClass,
}).Parse(pageSource))

// staticPage has everything on one page.
type staticPage struct {
	common
	List    *listPage
	Compare *comparePage
	Runs    []runPage
	Made    time.Time
}

// WriteStatic writes one page of all runs that needs nothing else: to send around.
func (x *Index) WriteStatic(w io.Writer) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refresh()
	p := staticPage{common: common{Static: true}, Made: time.Now()}
	if len(x.runs) > 1 {
		list := x.list("")
		list.Static = true
		compared := compare(x.runs)
		compared.Static = true
		p.List, p.Compare, p.Title = &list, &compared, list.Title
	}
	for _, r := range x.runs {
		one := r.page()
		one.Static = true
		p.Runs = append(p.Runs, one)
		if p.Title == "" {
			p.Title = one.Title
		}
	}
	if err := pages.ExecuteTemplate(w, "static", p); err != nil {
		return fmt.Errorf("write dashboard: %w", err)
	}
	return nil
}

// WriteFile writes the page of WriteStatic to a file, which has all of it or is not there.
func (x *Index) WriteFile(path string) error {
	_, err := durable.ReplaceFile(durable.OS, path, x.WriteStatic)
	return err
}
