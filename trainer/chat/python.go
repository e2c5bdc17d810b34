package chat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/exec"
)

// stringMethods are Python's methods of text: the engine's, but for those whose result differs from Python's. Its split
// takes maxsplit for the number of parts, and its strip, lstrip and rstrip without an argument take off nothing or fail,
// and its replace wants a count; a template would then lose a part of what an assistant said (DeepSeek-V3.1) or not render (QwQ-32B).
func stringMethods() *exec.MethodSet[string] {
	methods := map[string]exec.Method[string]{
		"split":   split,
		"replace": replace,
		"strip":   stripper(true, true),
		"lstrip":  stripper(true, false),
		"rstrip":  stripper(false, true),
	}
	for _, name := range []string{
		"capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "isalnum", "isalpha",
		"isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join",
		"ljust", "lower", "partition", "removeprefix", "removesuffix", "rfind", "rjust", "rpartition", "rsplit",
		"splitlines", "startswith", "swapcase", "title", "upper", "zfill",
	} {
		if method, known := builtins.Methods.Str.Get(name); known {
			methods[name] = method
		}
	}
	return exec.NewMethodSet(methods)
}

// parameters returns the values of a call's parameters, nil where one is left out or None.
func parameters(call *exec.VarArgs, names ...string) ([]*exec.Value, error) {
	if len(call.Args) > len(names) {
		return nil, exec.ErrInvalidCall(fmt.Errorf("takes at most %d arguments, got %d", len(names), len(call.Args)))
	}
	values := make([]*exec.Value, len(names))
	copy(values, call.Args)
	for name, value := range call.KwArgs {
		at := slices.Index(names, name)
		if at < 0 || at < len(call.Args) {
			return nil, exec.ErrInvalidCall(fmt.Errorf("unexpected argument %q", name))
		}
		values[at] = value
	}
	for i, value := range values {
		if value != nil && value.IsNil() {
			values[i] = nil
		}
	}
	return values, nil
}

// split is str.split(sep=None, maxsplit=-1).
func split(self string, _ *exec.Value, call *exec.VarArgs) (any, error) {
	values, err := parameters(call, "sep", "maxsplit")
	if err != nil {
		return nil, err
	}
	most := -1
	if v := values[1]; v != nil {
		if !v.IsInteger() {
			return nil, exec.ErrInvalidCall(fmt.Errorf("maxsplit must be an integer, is %s", v.String()))
		}
		most = v.Integer()
	}
	if values[0] == nil {
		return splitSpace(self, most), nil
	}
	sep := values[0].String()
	if !values[0].IsString() || sep == "" {
		return nil, exec.ErrInvalidCall(fmt.Errorf("sep must be text that is not empty, is %q", sep))
	}
	if most < 0 {
		return strings.Split(self, sep), nil
	}
	return strings.SplitN(self, sep, most+1), nil
}

// replace is str.replace(old, new, count=-1).
func replace(self string, _ *exec.Value, call *exec.VarArgs) (any, error) {
	values, err := parameters(call, "old", "new", "count")
	if err != nil {
		return nil, err
	}
	count := -1
	if v := values[2]; v != nil && v.IsInteger() {
		count = v.Integer()
	} else if v != nil {
		return nil, exec.ErrInvalidCall(fmt.Errorf("count must be an integer, is %s", v.String()))
	}
	if values[0] == nil || values[1] == nil || !values[0].IsString() || !values[1].IsString() {
		return nil, exec.ErrInvalidCall(errors.New("old and new must be text"))
	}
	return strings.Replace(self, values[0].String(), values[1].String(), count), nil
}

// splitSpace splits at runs of white space, at most so many times; what remains is only trimmed on the left.
func splitSpace(text string, most int) []string {
	parts := []string{}
	for {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		if text == "" {
			return parts
		}
		end := strings.IndexFunc(text, unicode.IsSpace)
		if end < 0 || most >= 0 && len(parts) == most {
			return append(parts, text)
		}
		parts = append(parts, text[:end])
		text = text[end:]
	}
}

// stripper is str.strip, lstrip or rstrip (chars=None).
func stripper(left, right bool) exec.Method[string] {
	return func(self string, _ *exec.Value, call *exec.VarArgs) (any, error) {
		values, err := parameters(call, "chars")
		if err != nil {
			return nil, err
		}
		cut := unicode.IsSpace
		if v := values[0]; v != nil {
			if !v.IsString() {
				return nil, exec.ErrInvalidCall(fmt.Errorf("chars must be text, is %s", v.String()))
			}
			chars := v.String()
			cut = func(r rune) bool { return strings.ContainsRune(chars, r) }
		}
		if left {
			self = strings.TrimLeftFunc(self, cut)
		}
		if right {
			self = strings.TrimRightFunc(self, cut)
		}
		return self, nil
	}
}
