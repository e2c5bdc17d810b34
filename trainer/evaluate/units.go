package evaluate

import (
	"regexp"
	"slices"
	"strings"
)

// units are the names and abbreviations of units, by the name that they are compared by. Units are never converted.
var units = named(
	"foot feet ft", "inch in", "yard yd", "mile mi", "millimeter millimetre mm", "centimeter centimetre cm", "decimeter decimetre dm",
	"meter metre m", "kilometer kilometre km", "nanometer nanometre nm",
	"milligram mg", "gram gramme g", "kilogram kilo kg", "pound lb £ gbp", "ounce oz", "milliliter millilitre ml", "centiliter centilitre cl",
	"liter litre l", "gallon gal", "quart qt", "pint pt", "tablespoon tbsp", "teaspoon tsp",
	"millisecond ms", "second sec s", "minute min", "hour hr h", "week wk", "month mo", "year yr",
	"dollar $ us$ usd buck", "euro € eur", "yen ¥ jpy", "rupee ₹ rs inr", "cent ct ¢", "people person", "child children", "man men", "woman women",
	"degree deg °", "radian rad", "celsius c", "fahrenheit f", "kph kmh", "dozen doz", "piece pc",
)

var currencies = []string{"dollar", "euro", "pound", "yen", "rupee", "cent"}

// expansions are abbreviations of several units.
var expansions = strings.NewReplacer("mph", "mile / hour", "kph", "kilometer / hour", "kmh", "kilometer / hour")

func named(lines ...string) map[string]string {
	m := map[string]string{}
	for _, line := range lines {
		names := strings.Fields(line)
		for _, n := range names {
			m[n] = names[0]
		}
	}
	return m
}

var perUnit = regexp.MustCompile(`\bper\b|/`)

// unitName is a unit by the name that it is compared by, its words in the singular: "sq. ft" and "feet^2" are "foot^2". What is
// of no certain kind ("6 units") has none.
func unitName(text string) string {
	text = strings.NewReplacer(".", " ", "{", "", "}", "", " ^", "^").Replace(strings.ToLower(text))
	power := ""
	var words []string
	for _, w := range strings.Fields(perUnit.ReplaceAllString(text, " / ")) {
		base, exponent, raised := strings.Cut(w, "^")
		if raised {
			power = "^" + exponent
		}
		switch base {
		case "square", "sq":
			power = "^2"
			continue
		case "cubic", "cu":
			power = "^3"
			continue
		case "unit", "units", "more":
			power = ""
			continue
		}
		words = append(words, expansions.Replace(singular(base))+power)
		power = ""
	}
	return strings.Join(words, " ")
}

func singular(word string) string {
	if name, known := units[word]; known {
		return name
	}
	if stem, plural := strings.CutSuffix(word, "s"); plural && len(word) > 2 && !strings.HasSuffix(stem, "s") {
		if name, known := units[stem]; known {
			return name
		}
		for _, sibilant := range []string{"xe", "che", "she", "sse"} {
			if strings.HasSuffix(stem, sibilant) {
				stem = strings.TrimSuffix(stem, "e")
				break
			}
		}
		if name, known := units[stem]; known {
			return name
		}
		if len(word) > 3 {
			return stem
		}
	}
	return word
}

// differ reports whether two units exclude each other. One that says more does not ("degree", "degree celsius"), unless it is a rate, which
// a price may be without saying so.
func differ(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	more, begins := strings.CutPrefix(b, a)
	return !begins || more != "" && (more[0] != ' ' || strings.HasPrefix(more, " /") && !slices.Contains(currencies, a))
}
