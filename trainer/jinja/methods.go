package jinja

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// arguments of a call.
type arguments struct {
	list  []any
	named map[string]any
}

// absent stands for a parameter that was not given.
type absent struct{}

// bind returns the values of parameters in their order; those after the first required ones may be absent.
func (a arguments) bind(of string, required int, names ...string) []any {
	if len(a.list) > len(names) {
		failf("%s takes at most %d arguments, got %d", of, len(names), len(a.list))
	}
	values := make([]any, len(names))
	for i, name := range names {
		v, known := a.named[name]
		switch {
		case i < len(a.list) && known:
			failf("%s got argument %s twice", of, name)
		case i < len(a.list):
			values[i] = a.list[i]
		case known:
			values[i] = v
		case i < required:
			failf("%s needs the argument %s", of, name)
		default:
			values[i] = absent{}
		}
	}
	for name := range a.named {
		if !slices.Contains(names, name) {
			failf("%s has no argument %s", of, name)
		}
	}
	return values
}

func isAbsent(v any) bool {
	_, ok := v.(absent)
	return ok
}

// textOr, wholeOr and truthOr are a parameter's value, or what is taken where it was not given.
func textOr(of string, v any, otherwise string) string {
	if isAbsent(v) {
		return otherwise
	}
	s, ok := text(v)
	if !ok {
		refuseUndefined(v)
		failf("%s takes text, not a %s", of, typeName(v))
	}
	return s
}

func wholeOr(of string, v any, otherwise int) int {
	if isAbsent(v) {
		return otherwise
	}
	n, ok := whole(v)
	if !ok {
		refuseUndefined(v)
		failf("%s takes an integer, not a %s", of, typeName(v))
	}
	return n
}

func truthOr(v any, otherwise bool) bool {
	if isAbsent(v) {
		return otherwise
	}
	return truth(v)
}

type textMethod func(s string, a arguments) any

func plain(name string, f func(s string) any) textMethod {
	return func(s string, a arguments) any {
		a.bind(name, 0)
		return f(s)
	}
}

func stripping(name string, left, right bool) textMethod {
	return func(s string, a arguments) any {
		chars := a.bind(name, 0, "chars")[0]
		if chars == nil {
			chars = absent{}
		}
		return strip(s, chars, left, right)
	}
}

func strip(s string, chars any, left, right bool) string {
	cut := isSpace
	if !isAbsent(chars) {
		set := textOr("strip", chars, "")
		cut = func(r rune) bool { return strings.ContainsRune(set, r) }
	}
	if left {
		s = strings.TrimLeftFunc(s, cut)
	}
	if right {
		s = strings.TrimRightFunc(s, cut)
	}
	return s
}

// isSpace is str.isspace of one character: Unicode's white space and the separators U+001C to U+001F.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f }

var textMethods map[string]textMethod

func init() {
	textMethods = map[string]textMethod{
		"lower":      plain("lower", func(s string) any { return lower(s) }),
		"upper":      plain("upper", func(s string) any { return upper(s) }),
		"casefold":   plain("casefold", func(s string) any { return cases.Fold().String(s) }),
		"capitalize": plain("capitalize", func(s string) any { return capitalize(s) }),
		"swapcase":   plain("swapcase", func(s string) any { return swapCase(s) }),
		"title":      plain("title", func(s string) any { return title(s) }),
		"strip":      stripping("strip", true, true),
		"lstrip":     stripping("lstrip", true, false),
		"rstrip":     stripping("rstrip", false, true),
		"startswith": affix("startswith", strings.HasPrefix),
		"endswith":   affix("endswith", strings.HasSuffix),
		"removeprefix": func(s string, a arguments) any {
			return strings.TrimPrefix(s, textOr("removeprefix", a.bind("removeprefix", 1, "prefix")[0], ""))
		},
		"removesuffix": func(s string, a arguments) any {
			return strings.TrimSuffix(s, textOr("removesuffix", a.bind("removesuffix", 1, "suffix")[0], ""))
		},
		"count": func(s string, a arguments) any {
			return strings.Count(s, textOr("count", a.bind("count", 1, "sub")[0], ""))
		},
		"find":  finding("find", strings.Index, false),
		"rfind": finding("rfind", strings.LastIndex, false),
		"index": finding("index", strings.Index, true),
		"replace": func(s string, a arguments) any {
			v := a.bind("replace", 2, "old", "new", "count")
			return replaced(s, textOr("replace", v[0], ""), textOr("replace", v[1], ""), wholeOr("replace", v[2], -1))
		},
		"split":  func(s string, a arguments) any { return split(s, a, "split", false) },
		"rsplit": func(s string, a arguments) any { return split(s, a, "rsplit", true) },
		"splitlines": func(s string, a arguments) any {
			return texts(splitLines(s, truthOr(a.bind("splitlines", 0, "keepends")[0], false)))
		},
		"partition": func(s string, a arguments) any {
			sep := separator(a.bind("partition", 1, "sep")[0])
			before, after, found := strings.Cut(s, sep)
			if !found {
				return newTuple(s, "", "")
			}
			return newTuple(before, sep, after)
		},
		"rpartition": func(s string, a arguments) any {
			sep := separator(a.bind("rpartition", 1, "sep")[0])
			at := strings.LastIndex(s, sep)
			if at < 0 {
				return newTuple("", "", s)
			}
			return newTuple(s[:at], sep, s[at+len(sep):])
		},
		"join": func(s string, a arguments) any {
			var parts []string
			for _, v := range iterate(a.bind("join", 1, "iterable")[0]) {
				parts = append(parts, textOr("join", v, ""))
			}
			return joined(parts, s)
		},
		"isalpha": all("isalpha", unicode.IsLetter),
		"isspace": all("isspace", isSpace),
		"isascii": plain("isascii", func(s string) any {
			return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
		}),
		"isdecimal": all("isdecimal", unicode.IsDigit),
		"isdigit":   all("isdigit", isDigit),
		"isnumeric": all("isnumeric", isNumeric),
		"isalnum":   all("isalnum", func(r rune) bool { return unicode.IsLetter(r) || isNumeric(r) }),
		"isupper":   plain("isupper", func(s string) any { return isUpper(s) }),
		"islower":   plain("islower", func(s string) any { return isLower(s) }),
		"zfill": func(s string, a arguments) any {
			n := wholeOr("zfill", a.bind("zfill", 1, "width")[0], 0) - utf8.RuneCountInString(s)
			sign := ""
			if s != "" && (s[0] == '-' || s[0] == '+') {
				sign, s = s[:1], s[1:]
			}
			return sign + pad("0", n) + s
		},
		"center": padding("center"),
		"ljust":  padding("ljust"),
		"rjust":  padding("rjust"),
		"format": func(s string, a arguments) any { return formatText(s, a) },
	}
}

func lower(s string) string { return cases.Lower(language.Und).String(s) }
func upper(s string) string { return cases.Upper(language.Und).String(s) }

// titled is the title case of one character, which may be more than one (ß: Ss).
func titled(r rune) string { return cases.Title(language.Und, cases.NoLower).String(string(r)) }

func capitalize(s string) string {
	if s == "" {
		return s
	}
	r, n := utf8.DecodeRuneInString(s)
	// The rest in the context of the whole: a final sigma after the first letter.
	return titled(r) + strings.TrimPrefix(lower(s), lower(s[:n]))
}

func isCased(r rune) bool {
	return unicode.IsUpper(r) || unicode.IsLower(r) || unicode.IsTitle(r)
}

// title is str.title: a letter is in title case unless one comes before it.
func title(s string) string {
	var out strings.Builder
	cased := false
	low := []rune(lower(s))
	sameLength := len(low) == utf8.RuneCountInString(s)
	for i, r := range []rune(s) {
		switch {
		case !cased:
			out.WriteString(titled(r))
		case sameLength:
			out.WriteRune(low[i])
		default:
			out.WriteString(lower(string(r)))
		}
		cased = isCased(r)
	}
	return out.String()
}

func swapCase(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsUpper(r):
			out.WriteString(lower(string(r)))
		case unicode.IsLower(r):
			out.WriteString(upper(string(r)))
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

func isUpper(s string) bool {
	return strings.IndexFunc(s, unicode.IsUpper) >= 0 && strings.IndexFunc(s, func(r rune) bool { return unicode.IsLower(r) || unicode.IsTitle(r) }) < 0
}

func isLower(s string) bool {
	return strings.IndexFunc(s, unicode.IsLower) >= 0 && strings.IndexFunc(s, func(r rune) bool { return unicode.IsUpper(r) || unicode.IsTitle(r) }) < 0
}

// isDigit and isNumeric know decimal digits. What else counts as a number in Python (², 三) is refused.
func isDigit(r rune) bool {
	if unicode.Is(unicode.No, r) {
		failf("whether %q is a digit is not supported", r)
	}
	return unicode.IsDigit(r)
}

func isNumeric(r rune) bool {
	if unicode.Is(unicode.Han, r) {
		failf("whether %q is a number is not supported", r)
	}
	return unicode.IsNumber(r)
}

func all(name string, is func(rune) bool) textMethod {
	return plain(name, func(s string) any {
		return s != "" && strings.IndexFunc(s, func(r rune) bool { return !is(r) }) < 0
	})
}

// affix is str.startswith or endswith of a text, or of one of some.
func affix(name string, has func(s, affix string) bool) textMethod {
	return func(s string, a arguments) any {
		v := a.bind(name, 1, "affix")[0]
		list, ok := v.(*List)
		if !ok || !list.Tuple {
			list = NewList(v)
		}
		return slices.ContainsFunc(list.Items, func(item any) bool { return has(s, textOr(name, item, "")) })
	}
}

func finding(name string, find func(s, part string) int, must bool) textMethod {
	return func(s string, a arguments) any {
		at := find(s, textOr(name, a.bind(name, 1, "sub")[0], ""))
		if at < 0 {
			if must {
				failf("%s: the text is not there", name)
			}
			return -1
		}
		return utf8.RuneCountInString(s[:at])
	}
}

func separator(v any) string {
	sep := textOr("the separator", v, "")
	if sep == "" {
		failf("a separator must not be empty")
	}
	return sep
}

func texts(parts []string) *List {
	list := &List{Items: make([]any, len(parts))}
	for i, p := range parts {
		list.Items[i] = p
	}
	return list
}

func split(s string, a arguments, name string, fromRight bool) any {
	v := a.bind(name, 0, "sep", "maxsplit")
	most := wholeOr(name, v[1], -1)
	if isAbsent(v[0]) || v[0] == nil {
		return texts(splitSpace(s, most, fromRight))
	}
	sep := separator(v[0])
	bounded("a split", strings.Count(s, sep))
	parts := strings.Split(s, sep)
	if most >= 0 && len(parts) > most+1 {
		if fromRight {
			n := len(parts) - most
			parts = append([]string{strings.Join(parts[:n], sep)}, parts[n:]...)
		} else {
			parts = append(parts[:most:most], strings.Join(parts[most:], sep))
		}
	}
	return texts(parts)
}

// splitSpace splits at runs of white space, at most so many times (any number if negative); what remains is trimmed on
// the side from which it was split only.
func splitSpace(s string, most int, fromRight bool) []string {
	parts := []string{}
	for {
		if fromRight {
			s = strings.TrimRightFunc(s, isSpace)
		} else {
			s = strings.TrimLeftFunc(s, isSpace)
		}
		if s == "" {
			break
		}
		at := strings.IndexFunc(s, isSpace)
		if fromRight {
			at = strings.LastIndexFunc(s, isSpace)
		}
		if at < 0 || most >= 0 && len(parts) == most {
			parts = append(parts, s)
			break
		}
		bounded("a split", len(parts))
		if fromRight {
			_, n := utf8.DecodeRuneInString(s[at:])
			parts = append(parts, s[at+n:])
			s = s[:at]
		} else {
			parts = append(parts, s[:at])
			s = s[at:]
		}
	}
	if fromRight {
		slices.Reverse(parts)
	}
	return parts
}

// splitLines is str.splitlines.
func splitLines(s string, keepEnds bool) []string {
	parts := []string{}
	for s != "" {
		at := strings.IndexFunc(s, isLineEnd)
		if at < 0 {
			return append(parts, s)
		}
		bounded("a split into lines", len(parts))
		_, n := utf8.DecodeRuneInString(s[at:])
		if strings.HasPrefix(s[at:], "\r\n") {
			n = 2
		}
		end := at
		if keepEnds {
			end += n
		}
		parts = append(parts, s[:end])
		s = s[at+n:]
	}
	return parts
}

func isLineEnd(r rune) bool {
	return r != 0 && strings.ContainsRune("\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029", r)
}

func pad(fill string, n int) string {
	if n > maxTextBytes {
		failf("text of %d characters is too long", n)
	}
	return strings.Repeat(fill, max(n, 0))
}

func padding(name string) textMethod {
	return func(s string, a arguments) any {
		v := a.bind(name, 1, "width", "fillchar")
		fill := textOr(name, v[1], " ")
		if utf8.RuneCountInString(fill) != 1 {
			failf("%s: the fill character must be one character", name)
		}
		return padded(name, s, wholeOr(name, v[0], 0), fill)
	}
}

func padded(name, s string, width int, fill string) string {
	n := width - utf8.RuneCountInString(s)
	switch {
	case n <= 0:
		return s
	case name == "ljust":
		return s + pad(fill, n)
	case name == "rjust":
		return pad(fill, n) + s
	}
	left := n/2 + n&width&1
	return pad(fill, left) + s + pad(fill, n-left)
}

var (
	dictMethods = []string{"get", "items", "keys", "values", "copy", "pop", "update", "clear", "setdefault", "popitem", "fromkeys"}
	listMethods = []string{"index", "count", "append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear", "copy"}
)

func hasMethod(v any, name string) bool {
	switch v := v.(type) {
	case string, markup:
		_, known := textMethods[name]
		if !known && slices.Contains([]string{"encode", "expandtabs", "format_map", "isidentifier", "isprintable", "istitle", "maketrans", "rindex", "translate"}, name) {
			failf("the method %s of text is not supported", name)
		}
		return known
	case *Dict:
		return slices.Contains(dictMethods, name)
	case *List:
		return slices.Contains(listMethods, name) && (!v.Tuple || name == "index" || name == "count")
	case int, float64, bool:
		failf("attributes of numbers are not supported: %s", name)
	}
	return false
}

func callMethod(self any, name string, a arguments) any {
	if m, ok := self.(markup); ok {
		failf("methods of escaped text are not supported: %s of %q", name, string(m))
	}
	switch self := self.(type) {
	case string:
		return textMethods[name](self, a)
	case *Dict:
		switch name {
		case "get":
			v := a.bind("get", 1, "key", "default")
			if value, known := self.get(v[0]); known {
				return value
			}
			if isAbsent(v[1]) {
				return nil
			}
			return v[1]
		case "items":
			a.bind("items", 0)
			return view(self.items().Items)
		case "keys":
			a.bind("keys", 0)
			return view(self.keys)
		case "values":
			a.bind("values", 0)
			return view(self.values)
		case "copy":
			return self
		}
	case *List:
		switch name {
		case "count":
			v, n := a.bind("count", 1, "value")[0], 0
			for _, x := range self.Items {
				if equal(x, v) {
					n++
				}
			}
			return n
		case "index":
			v := a.bind("index", 1, "value")[0]
			at := slices.IndexFunc(self.Items, func(x any) bool { return equal(x, v) })
			if at < 0 {
				failf("index: the value is not in the list")
			}
			return at
		case "copy":
			return self
		}
	}
	failf("the sandbox does not let a template change a %s: %s", typeName(self), name)
	return nil
}
