package evaluate

import (
	"math/big"
	"regexp"
	"slices"
	"strings"
	"unicode"
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
	"√", " sqrt ", "π", `\pi `, "∞", `\infty `, "½", `\frac{1}{2}`, "⅓", `\frac{1}{3}`, "⅔", `\frac{2}{3}`, "¼", `\frac{1}{4}`, "¾", `\frac{3}{4}`,
	"⅕", `\frac{1}{5}`, "⅖", `\frac{2}{5}`, "⅗", `\frac{3}{5}`, "⅘", `\frac{4}{5}`, "⅙", `\frac{1}{6}`, "⅚", `\frac{5}{6}`,
	"⅛", `\frac{1}{8}`, "⅜", `\frac{3}{8}`, "⅝", `\frac{5}{8}`, "⅞", `\frac{7}{8}`, `\colon`, ":", `\langle`, "(", `\rangle`, ")", "⟨", "(", "⟩", ")", `\pmod`, " mod ", `\bmod`, " mod ", `\mod`, " mod ", "≡", `\equiv `, `\lbrack`, "[", `\rbrack`, "]",
	`^\circ`, "°", `^{\circ}`, "°", `\circ`, "°", `\degree`, "°",
	`\{`, setOpen, `\}`, setClose, `\lbrace`, setOpen, `\rbrace`, setClose,
	`\%`, "%", `\$`, "$", `\&`, "&", "±", `\pm `, `\lvert`, "|", `\rvert`, "|", `\vert`, "|",
	"o'clock", "oclock", "o’clock", "oclock", ">=", `\ge `, "<=", `\le `, "!=", `\neq `, "≠", `\neq `, "==", "=", "ℝ", `\mathbb{R}`,
	"α", `\alpha `, "β", `\beta `, "γ", `\gamma `, "δ", `\delta `, "ε", `\epsilon `, "θ", `\theta `, "λ", `\lambda `, "σ", `\sigma `,
	"φ", `\phi `, "ω", `\omega `, "Δ", `\Delta `, "Ω", `\Omega `,
	"≈", `\approx `, `\leqslant`, `\le `, `\geqslant`, `\ge `, `\leq`, `\le `, `\geq`, `\ge `, `\le`, `\le `, `\ge`, `\ge `, "≤", `\le `, "≥", `\ge `, "∪", `\cup `, "∈", `\in `, "∅", `\emptyset `, `\varnothing`, `\emptyset`,
)

// alike brings characters to one that only look different: full-width ones, spaces, dashes. What shows nothing goes.
func alike(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Zs, r), unicode.Is(unicode.So, r) && r != '°': // ticks, pictures
			return ' '
		case unicode.Is(unicode.Pd, r) && r < '！' || r == '−':
			return '-'
		case r == '⁄' || r == '∕':
			return '/'
		case r >= '٠' && r <= '٩':
			return r - '٠' + '0'
		case r >= '۰' && r <= '۹':
			return r - '۰' + '0'
		case r >= '०' && r <= '९':
			return r - '०' + '0'
		case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Mn, r) && r >= '\uFE00': // and what selects a picture's style
			return -1
		}
		return r
	}, wide.Replace(text))
}

// wide are characters of East Asian width. Their commas and full stops hold the space that follows others.
var wide = func() *strings.Replacer {
	pairs := []string{"，", ", ", "、", ", ", "。", ". ", "；", "; ", "℃", "°C", "℉", "°F"}
	for r := '！'; r <= '～'; r++ {
		pairs = append(pairs, string(r), string(r-'！'+'!'))
	}
	return strings.NewReplacer(pairs...)
}()

// raised are digits above the line, and lowered those below.
var (
	raised  = regexp.MustCompile(`[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+`)
	lowered = regexp.MustCompile(`[₀₁₂₃₄₅₆₇₈₉]+`)
	onLine  = strings.NewReplacer("⁰", "0", "¹", "1", "²", "2", "³", "3", "⁴", "4", "⁵", "5", "⁶", "6", "⁷", "7", "⁸", "8", "⁹", "9", "⁺", "+", "⁻", "-",
		"₀", "0", "₁", "1", "₂", "2", "₃", "3", "₄", "4", "₅", "5", "₆", "6", "₇", "7", "₈", "8", "₉", "9")
)

const (
	setOpen, setClose   = "⦃", "⦄"
	textOpen, textClose = "⟦", "⟧"
)

var (
	// inText is text within LaTeX; its content is marked, so that units can be told from formulas.
	inText       = regexp.MustCompile(`\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|operatorname|hbox|mathit)\s*\{([^{}]*)\}`)
	numberInText = regexp.MustCompile(`⟦\s*([-\d.,]+)\s*⟧`)
	// decorated is a letter with a mark that says what kind of thing it is, or letters under a line.
	decorated = regexp.MustCompile(`\\(?:mathbf|boldsymbol|vec|overrightarrow|hat)\s*\{\s*([A-Za-z])\s*\}|\\(?:vec|hat)\s+([A-Za-z])\b|\\overline\s*\{\s*([A-Z]{2})\s*\}`)
	// allOf is a set of numbers by its letter.
	allOf = regexp.MustCompile(`\\mathbb\s*\{?\s*([A-Z])\s*\}?`)
	// repeating is a decimal whose last digits repeat: they are under a line.
	repeating = regexp.MustCompile(`(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?`)
	// goesOn is one that says so by dots.
	goesOn   = regexp.MustCompile(`(\d*\.\d*)(\d)(\d)(\d)(?:\.\.+|…|\\l?dots)`)
	infinity = regexp.MustCompile(`(?i)\binfinity\b`)
	notEqual = regexp.MustCompile(`\\neq?(\s|\d|[-+({\\]|$)`)
	// spaced is a number with spaces for separators.
	spaced = regexp.MustCompile(`^[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?$`)
	// bareRoot is a root of a number without braces where it is no LaTeX, which would take one digit.
	bareRoot = regexp.MustCompile(`(^|[^\\A-Za-z])sqrt\s*(\d+(?:\.\d+)?|[a-z]\b)`)
	modulo   = regexp.MustCompile(`\(\s*mod\s+([^()]*)\)|\bmod\s+\{([^{}]*)\}`)
	piWord   = regexp.MustCompile(`(^|[\d\s])pi(\s|$)`)
	// thousands is a number with separators, whole. With spaces behind the commas it is a list.
	thousands = regexp.MustCompile(`^(?:[A-Za-z][\w ]*=\s*)?[-+]?\s*(\$|€|£|¥)?\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\b`)
	// timesTen is scientific notation with the letter for a sign, and ordinal a number of order.
	timesTen = regexp.MustCompile(`(\d)\s*[xX]\s*10\s*\^`)
	ordinal  = regexp.MustCompile(`^(\d+)(?:st|nd|rd|th)\b`)
	// swiss is an apostrophe between thousands, and indian and continental are numbers with the separators of those places.
	swiss       = regexp.MustCompile(`\b\d{1,3}(?:['’]\d{3})+\b`)
	indian      = regexp.MustCompile(`^[-+]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?$`)
	continental = regexp.MustCompile(`^([-+]?\d{1,3})((?:\.\d{3})+)(?:,(\d+))?$`)
	// styled is what says how a part looks.
	styled = regexp.MustCompile(`</?(?:b|i|u|em|strong|code)>|\\(?:text)?color\s*\{\w+\}`)
	// overs are TeX's fractions, newRow a matrix's new row with the space before it, and rate a fraction of units.
	overs  = regexp.MustCompile(`\{([^{}]*)\\(over|choose)\b([^{}]*)\}`)
	newRow = regexp.MustCompile(`\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\]`)
	rate   = regexp.MustCompile(`\\frac\s*\{\s*⟦([^⟧]*)⟧\s*\}\s*\{\s*⟦([^⟧]*)⟧\s*\}`)
	// unitWords are behind a number, in plain text; unitLetter is one letter that may be a unit, apart.
	unitWords  = regexp.MustCompile(`^([-+\d.,/^{}()*\s\\a-z]*?(?:[\d})]|\\?pi\b))\s*((?:[A-Za-z]{2}|[^\x00-\x7F\p{Greek}\P{L}])[\p{L}\s./^\d-]*)$`)
	unitLetter = regexp.MustCompile(`^([-+]?[\d.,/ ]*\d)\s+([hmsgLl](?:\^\d)?(?:\s*/\s*[A-Za-z]+(?:\^\d)?)?)$`)
	// noUnit is behind a number that is not all: "1 hour 30 minutes", "3 to 4", "12 squared".
	noUnit   = regexp.MustCompile(`^(?:[A-Za-z]+\s+\d+(?:\.\d+)?\s*[A-Za-z]|(?:to|and|or|of|times|plus|minus|divided)\s+.*\d|(?:in|out of)\s+\d+$|(?:squared|cubed|factorial|choose|mod|modulo|over)\b|.*\bhalf\b)`)
	textUnit = regexp.MustCompile(`^(.*\S)\s*⟦([^⟧]*)⟧\s*(\^\{?\d\}?)?$`)
	currency = regexp.MustCompile(`^([-+]?)\s*(US\$|USD|EUR|GBP|Rs\b\.?|[$€£¥₹])\s*`)
	// currencyBehind is where others write it.
	currencyBehind = regexp.MustCompile(`^(.*\d)\s*([$€£¥₹])$`)
	mixed          = regexp.MustCompile(`^([-+]?)(\d+)(?:\s+|-|\s+and\s+)(\d+)/(\d+)$`)
	boundTo        = regexp.MustCompile(`^[A-Za-z](?:_\w)?(?:\([a-z]\))?\s*\\in\b\s*`)
	// namedTuple is before a tuple whose parts it names.
	namedTuple = regexp.MustCompile(`^\(\s*\\?[A-Za-z]+(?:_\w)?(?:\s*,\s*\\?[A-Za-z]+(?:_\w)?)+\s*\)\s*=\s*\(`)
	ofDegrees  = regexp.MustCompile(`^(.*[\d})])\s*°\s*([CF]?)$`)
	ofAngles   = regexp.MustCompile(`sin|cos|tan|cot|sec|csc`)
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
	text = newRow.ReplaceAllString(styled.ReplaceAllString(alike(text), ""), `\\`)
	text = raised.ReplaceAllStringFunc(text, func(digits string) string { return script("^", onLine.Replace(digits)) })
	text = lowered.ReplaceAllStringFunc(text, func(digits string) string { return script("_", onLine.Replace(digits)) })
	text = unboxed(written.Replace(text))
	text = overs.ReplaceAllStringFunc(text, func(group string) string {
		m := overs.FindStringSubmatch(group)
		return map[string]string{"over": `\frac{`, "choose": `\binom{`}[m[2]] + m[1] + "}{" + m[3] + "}"
	})
	text = decorated.ReplaceAllString(text, "$1$2$3")
	text = allOf.ReplaceAllString(text, `\mathbb{$1}`)
	text = notEqual.ReplaceAllString(infinity.ReplaceAllString(text, `\infty `), `\ne $1`)
	text = repeating.ReplaceAllStringFunc(goesOn.ReplaceAllStringFunc(text, overline), fractionOf)
	for range 3 { // \text within \text
		text = inText.ReplaceAllString(text, textOpen+"$1"+textClose)
	}
	text = numberInText.ReplaceAllString(text, "$1")
	text = rate.ReplaceAllString(text, "⟦$1/$2⟧")
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
	text = swiss.ReplaceAllStringFunc(text, func(number string) string { return strings.NewReplacer("'", "", "’", "").Replace(number) })
	text = ordinal.ReplaceAllString(timesTen.ReplaceAllString(text, "$1*10^"), "$1")
	if m := continental.FindStringSubmatch(text); m != nil && (m[3] != "" || strings.Count(m[2], ".") > 1) {
		text = m[1] + strings.ReplaceAll(m[2], ".", "")
		if m[3] != "" {
			text += "." + m[3]
		}
	}
	text = bareRoot.ReplaceAllString(inDigits(text), `$1\sqrt{$2}`)
	text = modulo.ReplaceAllString(text, "mod $1$2")
	text = piWord.ReplaceAllString(text, `$1\pi $2`)
	return namedTuple.ReplaceAllString(boundTo.ReplaceAllString(text, ""), "(")
}

// script is an exponent or an index.
func script(mark, digits string) string {
	if len(digits) > 1 {
		return mark + "{" + digits + "}"
	}
	return mark + digits
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

// overline puts the digit that a decimal goes on with under a line: 0.333... is 0.\overline{3}.
func overline(decimal string) string {
	m := goesOn.FindStringSubmatch(decimal)
	if m[2] != m[3] || m[3] != m[4] {
		return decimal
	}
	return m[1] + `\overline{` + m[2] + `}`
}

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
		a.formula, a.unit = m[1]+a.formula[len(m[0]):], unitName(m[2])
	} else if m := currencyBehind.FindStringSubmatch(a.formula); m != nil {
		a.formula, a.unit = m[1], unitName(m[2])
	}
	if m := thousands.FindString(a.formula); m != "" {
		a.formula = strings.NewReplacer(",", "", " ", "").Replace(m) + a.formula[len(m):]
	}
	a.formula = strings.TrimSpace(a.formula)
	for range 2 { // "3 million dollars"
		a.takeUnit()
	}
	if rest, ok := strings.CutSuffix(a.formula, "%"); ok {
		a.formula, a.percent = strings.TrimSpace(rest), true
	}
	if m := ofDegrees.FindStringSubmatch(a.formula); m != nil && !ofAngles.MatchString(m[1]) {
		a.formula, a.unit = m[1], unitName("degree "+m[2])
	}
	if m := mixed.FindStringSubmatch(a.formula); m != nil {
		a.formula = m[1] + "(" + m[2] + "+" + m[3] + "/" + m[4] + ")"
	}
	return a
}

func (a *amount) takeUnit() {
	unit := ""
	if m := textUnit.FindStringSubmatch(a.formula); m != nil && (strings.ContainsAny(m[1], "0123456789") || strings.HasSuffix(m[1], `\pi`)) {
		a.formula, unit = m[1], m[2]+strings.Trim(m[3], "{}")
	} else if m := unitWords.FindStringSubmatch(a.formula); m != nil && !isFormulaWord(m[2]) && !noUnit.MatchString(m[2]) && !countsOn(m[2]) {
		apart := a.formula[len(m[1])] == ' '
		if short := areVariables(m[2]); short && !apart {
			return
		} else if short {
			a.short = true
		}
		a.formula, unit = m[1], m[2]
	} else if m := unitLetter.FindStringSubmatch(a.formula); m != nil {
		a.formula, unit, a.short = m[1], m[2], true
	}
	if unit = unitName(unit); unit == "" {
		return
	}
	if first, rest, _ := strings.Cut(unit, " "); magnitudes[first] != "" {
		a.formula = "(" + a.formula + ")*" + magnitudes[first]
		unit = rest
	}
	if unit, a.percent = cutPercent(unit, a.percent); unit != "" {
		a.unit = strings.TrimSpace(a.unit + " " + unit)
	}
}

var (
	exponent = regexp.MustCompile(`\^-?\d\b|[A-Za-z][23]\b`)
	// placed is what may follow that has a number: "5 apples in 3 bags".
	placed = regexp.MustCompile(`^\p{L}+(?:\s+\p{L}+)?\s+(?:in|after|for|on|within|per|each|every)\s`)
)

// countsOn reports whether what stands behind a number has another one, and so is not its unit: "12 fewer than 34".
func countsOn(unit string) bool {
	return strings.ContainsAny(exponent.ReplaceAllString(unit, ""), "0123456789") && !placed.MatchString(unit)
}

// cutPercent takes the word off a unit: "percent of students".
func cutPercent(unit string, percent bool) (rest string, isPercent bool) {
	first, rest, _ := strings.Cut(unit, " ")
	if first == "percent" {
		return rest, true
	}
	return unit, percent
}

// shortUnits are units of few letters.
var shortUnits = strings.Fields("mm cm dm km nm ft in yd mi sq cu kg mg lb lbs oz ml mL dl cl cc hr hrs min sec ms am pm AM PM mph kph kmh m s g l L " +
	"Hz kHz kW kWh Wh kN kJ kPa Pa eV USD EUR GBP CAD AUD INR Rs usd ct cts pt pts pcs qt gal tsp doz bpm rpm fps psi KB MB GB TB deg rad")

// areVariables reports whether letters behind a number may be variables side by side: no more than three at a time, and no unit's name.
func areVariables(text string) bool {
	for _, word := range strings.FieldsFunc(text, notLetter) {
		if len(word) > 3 || word[0] > unicode.MaxASCII || slices.Contains(shortUnits, word) {
			return false
		}
	}
	return true
}

// isFormulaWord reports whether a word behind a number belongs to the formula: a function, or variables side by side.
func isFormulaWord(text string) bool {
	first := strings.FieldsFunc(text, notLetter)
	if len(first) == 0 {
		return true
	}
	name := first[0]
	if _, known := functions[name]; known && text != name || name == "pi" || name == "sqrt" || name == "log" || name == "ln" {
		return true
	}
	return false
}

func notLetter(r rune) bool { return !unicode.IsLetter(r) }

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
