package evaluate

import (
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// written replaces spellings by one: LaTeX's spaces and sizes go, signs become ASCII. Sets' braces become marks of their
// own, so that they differ from those of grouping.
var written = strings.NewReplacer(
	`\\`, `\\`, // a matrix's new row
	`\(`, " ", `\)`, " ", `\[`, " ", `\]`, " ", // around formulas
	`{,}`, ",", `,\! `, ",", `\left`, "", `\right`, "", `\bigl`, "", `\bigr`, "", `\big`, "", `\Big`, "",
	`\displaystyle`, "", `\textstyle`, "", `\!`, "", `\,`, " ", `\;`, " ", `\:`, " ", `\ `, " ", "~", " ", `\quad`, " ", `\qquad`, " ", "\u00a0", " ", "\u202f", " ",
	`\dfrac`, `\frac`, `\tfrac`, `\frac`, `\cfrac`, `\frac`, `\dbinom`, `\binom`, `\tbinom`, `\binom`,
	`\cdot`, "*", `\times`, "*", "×", "*", "·", "*", "⋅", "*", `\div`, "/", "÷", "/",
	"−", "-", "–", "-", "²", "^2", "³", "^3", "√", " sqrt ", "π", `\pi `, "∞", `\infty `, "½", `\frac{1}{2}`, "¼", `\frac{1}{4}`, "¾", `\frac{3}{4}`,
	`^\circ`, "°", `^{\circ}`, "°", `\circ`, "°", `\degree`, "°",
	`\{`, setOpen, `\}`, setClose, `\lbrace`, setOpen, `\rbrace`, setClose,
	`\%`, "%", `\$`, "$", `\&`, "&", "±", `\pm `, `\lvert`, "|", `\rvert`, "|", `\vert`, "|",
	">=", `\ge `, "<=", `\le `, "!=", `\neq `, "≠", `\neq `, "==", "=", "ℝ", `\mathbb{R}`,
	"α", `\alpha `, "β", `\beta `, "γ", `\gamma `, "δ", `\delta `, "ε", `\epsilon `, "θ", `\theta `, "λ", `\lambda `, "σ", `\sigma `,
	"φ", `\phi `, "ω", `\omega `, "Δ", `\Delta `, "Ω", `\Omega `,
	"≈", `\approx `, `\leq`, `\le `, `\geq`, `\ge `, `\le`, `\le `, `\ge`, `\ge `, "≤", `\le `, "≥", `\ge `, "∪", `\cup `, "∈", `\in `, "∅", `\emptyset `, `\varnothing`, `\emptyset`,
)

const (
	setOpen, setClose   = "⦃", "⦄"
	textOpen, textClose = "⟦", "⟧"
)

var (
	// inText is text within LaTeX; its content is marked, so that units can be told from formulas.
	inText = regexp.MustCompile(`\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|operatorname|hbox|mathit)\s*\{([^{}]*)\}`)
	// decorated is a letter with a mark that says what kind of thing it is, or letters under a line.
	decorated = regexp.MustCompile(`\\(?:mathbf|boldsymbol|vec|overrightarrow|hat)\s*\{\s*([A-Za-z])\s*\}|\\(?:vec|hat)\s+([A-Za-z])\b|\\overline\s*\{\s*([A-Z]{2})\s*\}`)
	// allOf is a set of numbers by its letter.
	allOf = regexp.MustCompile(`\\mathbb\s*\{?\s*([A-Z])\s*\}?`)
	// repeating is a decimal whose last digits repeat: they are under a line.
	repeating = regexp.MustCompile(`(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?`)
	infinity  = regexp.MustCompile(`(?i)\binfinity\b`)
	notEqual  = regexp.MustCompile(`\\neq?(\s|\d|[-+({\\]|$)`)
	// spaced is a number with spaces for separators.
	spaced = regexp.MustCompile(`^[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?$`)
	// bareRoot is a root of a number without braces where it is no LaTeX, which would take one digit.
	bareRoot = regexp.MustCompile(`(^|[^\\A-Za-z])sqrt\s*(\d+(?:\.\d+)?|[a-z]\b)`)
	// thousands is a number with separators, whole. With spaces behind the commas it is a list.
	thousands = regexp.MustCompile(`^[-+]?\s*(\$|€|£|¥)?\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\b`)
	// unitWords are behind a number, in plain text.
	unitWords = regexp.MustCompile(`^([-+]?[\d.,/^{}()*\s\\a-z]*?[\d})])\s*([A-Za-z]{2,}[A-Za-z\s./^\d²³-]*)$`)
	// noUnit is behind a number that is not all: "1 hour 30 minutes", "3 to 4".
	noUnit   = regexp.MustCompile(`^(?:[A-Za-z]+\s+\d+(?:\.\d+)?\s*[A-Za-z]|to\s+\d)`)
	textUnit = regexp.MustCompile(`^(.*\S)\s*⟦([^⟧]*)⟧\s*(\^\{?\d\}?)?$`)
	currency = regexp.MustCompile(`^([-+]?)\s*(?:\$|€|£|¥|USD|US\$)\s*`)
	mixed    = regexp.MustCompile(`^([-+]?)(\d+)(?:\s+|-|\s+and\s+)(\d+)/(\d+)$`)
	boundTo  = regexp.MustCompile(`^[A-Za-z](?:_\w)?(?:\([a-z]\))?\s*\\in\b\s*`)
	// namedTuple is before a tuple whose parts it names.
	namedTuple = regexp.MustCompile(`^\(\s*[A-Za-z](?:_\w)?(?:\s*,\s*[A-Za-z](?:_\w)?)+\s*\)\s*=\s*\(`)
	ofDegrees  = regexp.MustCompile(`^(.*\d)\s*°\s*([CF])$`)
	spaces     = regexp.MustCompile(`\s+`)
)

// magnitudes are words that multiply.
var magnitudes = map[string]string{
	"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000", "trillion": "1000000000000", "dozen": "12",
}

// amount is an answer without what surrounds its formula.
type amount struct {
	formula string
	unit    string // in lower case and singular, empty if there is none
	percent bool
	short   bool // the unit is a few letters that stand apart: they may be variables
}

// clean brings an answer to one spelling, still as text.
func clean(text string) string {
	text = strings.TrimSpace(text)
	text = strings.TrimSpace(strings.TrimLeft(text, ":"))
	text = unboxed(written.Replace(text))
	text = decorated.ReplaceAllString(text, "$1$2$3")
	text = allOf.ReplaceAllString(text, `\mathbb{$1}`)
	text = notEqual.ReplaceAllString(infinity.ReplaceAllString(text, `\infty `), `\ne $1`)
	text = repeating.ReplaceAllStringFunc(text, fractionOf)
	for range 3 { // \text within \text
		text = inText.ReplaceAllString(text, textOpen+"$1"+textClose)
	}
	text = strings.Trim(spaces.ReplaceAllString(text, " "), " *`")
	for {
		shorter := strings.TrimSpace(strings.TrimRight(text, "./;,"))
		if strings.HasSuffix(text, "!") || shorter == text {
			break
		}
		text = shorter
	}
	// Dollar signs are LaTeX's in pairs around all of it, and a currency otherwise.
	if len(text) > 1 && text[0] == '$' && text[len(text)-1] == '$' {
		text = strings.TrimSpace(strings.Trim(text, "$"))
	}
	if inner, ok := within(text, textOpen, textClose); ok && !strings.Contains(inner, textOpen) {
		text = strings.TrimSpace(inner)
	}
	if spaced.MatchString(text) {
		text = strings.ReplaceAll(text, " ", "")
	}
	text = bareRoot.ReplaceAllString(text, `$1\sqrt{$2}`)
	return namedTuple.ReplaceAllString(boundTo.ReplaceAllString(text, ""), "(")
}

// unboxed is what an answer holds that is still in its box.
func unboxed(text string) string {
	for _, box := range []string{`\boxed{`, `\fbox{`} {
		if inner, ok := within(strings.Trim(text, "$ "), box, "}"); ok {
			return inner
		}
	}
	return text
}

// maxRepeating bounds the digits of a repeating decimal.
const maxRepeating = 60

// fractionOf is a repeating decimal as a fraction.
func fractionOf(decimal string) string {
	m := repeating.FindStringSubmatch(decimal)
	if len(m[1])+len(m[2])+len(m[3]) > maxRepeating {
		return decimal
	}
	read := func(digits string) *big.Int {
		n, ok := new(big.Int).SetString(digits, 10)
		if !ok {
			return new(big.Int) // there are none before the point
		}
		return n
	}
	tens := func(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }
	num := new(big.Int).Sub(read(m[1]+m[2]+m[3]), read(m[1]+m[2]))
	den := new(big.Int).Mul(new(big.Int).Sub(tens(len(m[3])), big.NewInt(1)), tens(len(m[2])))
	return "(" + num.String() + "/" + den.String() + ")"
}

// aboutParts are the numbers of "1/3 \approx 0.33", each of which may be meant; what stands alone is one.
func aboutParts(text string) []string {
	if !strings.Contains(text, `\approx`) {
		return []string{text}
	}
	var parts []string
	for _, p := range strings.Split(text, `\approx`) {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

// amountOf takes units, currency and percent off a cleaned answer.
func amountOf(text string) amount {
	a := amount{formula: text}
	if m := currency.FindStringSubmatch(a.formula); m != nil {
		a.formula, a.unit = m[1]+a.formula[len(m[0]):], "dollar"
	}
	if m := thousands.FindString(a.formula); m != "" {
		a.formula = strings.NewReplacer(",", "", " ", "").Replace(m) + a.formula[len(m):]
	}
	a.formula = strings.TrimSpace(a.formula)
	if m := mixed.FindStringSubmatch(a.formula); m != nil {
		a.formula = m[1] + "(" + m[2] + "+" + m[3] + "/" + m[4] + ")"
	}
	for range 2 { // "3 million dollars"
		a.takeUnit()
	}
	if rest, ok := strings.CutSuffix(a.formula, "%"); ok {
		a.formula, a.percent = strings.TrimSpace(rest), true
	}
	if m := ofDegrees.FindStringSubmatch(a.formula); m != nil {
		a.formula, a.unit = m[1], strings.ToLower(m[2])
	}
	if rest, ok := strings.CutSuffix(a.formula, "°"); ok {
		a.formula = rest // degrees go without saying
	}
	return a
}

func (a *amount) takeUnit() {
	unit := ""
	if m := textUnit.FindStringSubmatch(a.formula); m != nil && strings.ContainsAny(m[1], "0123456789") {
		a.formula, unit = m[1], m[2]+strings.Trim(m[3], "{}")
	} else if m := unitWords.FindStringSubmatch(a.formula); m != nil && !isFormulaWord(m[2]) && !noUnit.MatchString(m[2]) {
		apart := a.formula[len(m[1])] == ' '
		if short := areVariables(m[2]); short && !apart {
			return
		} else if short {
			a.short = true
		}
		a.formula, unit = m[1], m[2]
	}
	if unit = unitName(unit); unit == "" {
		return
	}
	if first, rest, _ := strings.Cut(unit, " "); magnitudes[first] != "" {
		a.formula = "(" + a.formula + ")*" + magnitudes[first]
		unit = rest
	}
	switch unit {
	case "":
	case "percent":
		a.percent = true
	case "degree":
	default:
		a.unit = unit
	}
}

// shortUnits are units of few letters.
var shortUnits = strings.Fields("mm cm dm km nm ft in yd mi sq cu kg mg lb lbs oz ml mL dl cl cc hr hrs min sec ms am pm AM PM mph kph kmh m s g l L " +
	"Hz kHz kW kWh Wh kN kJ kPa Pa eV USD EUR GBP CAD AUD INR Rs usd ct cts pt pts pcs qt gal tsp doz bpm rpm fps psi KB MB GB TB deg rad")

// areVariables reports whether letters behind a number may be variables side by side: no more than three at a time, and no unit's name.
func areVariables(text string) bool {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !isLetter(byte(r)) }) {
		if len(word) > 3 || slices.Contains(shortUnits, word) {
			return false
		}
	}
	return true
}

// unitName is a unit in lower case, its words in the singular.
func unitName(text string) string {
	words := strings.Fields(strings.ToLower(strings.Trim(text, " .")))
	for i, w := range words {
		if len(w) > 3 && strings.HasSuffix(w, "s") && !strings.HasSuffix(w, "ss") {
			words[i] = strings.TrimSuffix(w, "s")
		}
	}
	return strings.Join(words, " ")
}

// isFormulaWord reports whether a word behind a number belongs to the formula: a function, or variables side by side.
func isFormulaWord(text string) bool {
	first := strings.FieldsFunc(text, func(r rune) bool { return !isLetter(byte(r)) })
	if len(first) == 0 {
		return true
	}
	name := first[0]
	if _, known := functions[name]; known || name == "pi" || name == "sqrt" || name == "log" || name == "ln" {
		return true
	}
	return false
}

// textOf is an answer as words: letter case, marks and articles do not count.
func textOf(text string) string {
	text = strings.NewReplacer(textOpen, " ", textClose, " ", "{", "", "}", "", `\`, " ", "<", " < ", ">", " > ", "=", " = ").Replace(strings.ToLower(text))
	fields := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n\"'`“”‘’.,;:!?*", r) })
	var kept []string
	for _, f := range fields {
		if f != "the" && f != "a" && f != "an" {
			kept = append(kept, f)
		}
	}
	joined := strings.Join(kept, " ")
	if len(kept) == 0 {
		joined = strings.Join(fields, " ")
	}
	if len(joined) == 3 && joined[0] == '(' && joined[2] == ')' {
		return joined[1:2] // the choice (C)
	}
	return joined
}
