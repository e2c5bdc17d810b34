package dashboard

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cftune/internal/spell"
)

// number writes a number as people read it: four digits that count.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case v == 0:
		return "0"
	case abs >= 1e6 || abs < 1e-3:
		return fmt.Sprintf("%.3g", v)
	case abs >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// rate writes a learning rate: 2e-4, 1.53e-5.
func rate(v float64) string {
	if v == 0 {
		return "0"
	}
	digits, exponent, _ := strings.Cut(fmt.Sprintf("%.2e", v), "e")
	power, err := strconv.Atoi(exponent)
	if err != nil {
		return digits + "e" + exponent // Go writes a whole number here
	}
	return strings.TrimRight(strings.TrimRight(digits, "0"), ".") + "e" + strconv.Itoa(power)
}

// short writes a number for an axis: 1.2k, 3M.
func short(v float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= unit.size {
			return fmt.Sprintf("%.3g%s", v/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%.3g", v)
}

// size writes a number of bytes.
func size(n float64) string {
	if n == 0 {
		return "0"
	}
	return spell.Size(n)
}

// sizeUnit is what sizes such as n are written in.
func sizeUnit(n float64) float64 {
	switch {
	case n >= 1<<30:
		return 1 << 30
	case n >= 1<<20:
		return 1 << 20
	}
	return 1 << 10
}

// lasting writes a time span in the two units that matter.
func lasting(d time.Duration) string {
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd %dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dh %dm", d/time.Hour, d%time.Hour/time.Minute), " 0m")
	case d >= time.Minute:
		return strings.TrimSuffix(fmt.Sprintf("%dm %ds", d/time.Minute, d%time.Minute/time.Second), " 0s")
	}
	return d.Round(100 * time.Millisecond).String()
}

func seconds(s float64) string { return lasting(time.Duration(s * float64(time.Second))) }

// model is a model's name: its file's, without folder and ending.
func model(path string) string { return strings.TrimSuffix(filepath.Base(path), ".gguf") }

var (
	userInURL   = regexp.MustCompile(`(://)[^/@\s"]*@`)
	queryInURL  = regexp.MustCompile(`(://[^\s"?]*\?)[^\s"]+`)
	secretWords = regexp.MustCompile(`(?i)((?:api[_-]?key|access[_-]?key|password|passwd|secret|token)["']?\s*[=:]\s*["']?)[^\s"',}]+`)
	tokenShapes = regexp.MustCompile(`\b(?:hf_|sk-|ghp_|AKIA|xox[bp]-)[A-Za-z0-9_-]{8,}`)
)

const hidden = "…"

// discreet takes out of a text what may be a secret: users, passwords and options of URLs, keys and tokens.
func discreet(text string) string {
	text = userInURL.ReplaceAllString(text, "${1}"+hidden+"@")
	text = queryInURL.ReplaceAllString(text, "${1}"+hidden)
	text = secretWords.ReplaceAllString(text, "${1}"+hidden)
	return tokenShapes.ReplaceAllString(text, hidden)
}

// value writes a setting's JSON as people read it.
func value(json string) string {
	switch json {
	case `""`, "null":
		return "–"
	}
	if text, err := strconv.Unquote(json); err == nil {
		json = text
	}
	return discreet(json)
}

// counted writes a number with what it counts.
func counted(n int64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}
