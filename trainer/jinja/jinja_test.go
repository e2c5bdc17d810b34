package jinja

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
)

func render(source string, names map[string]any) (string, error) {
	t, err := Parse(source)
	if err != nil {
		return "", err
	}
	return t.Render(names)
}

// What Jinja2 3.1 on Python 3.11 writes for the same expressions. Whole templates are compared with transformers by the
// tests of trainer/chat.
func TestExpressions(t *testing.T) {
	for expression, want := range map[string]string{
		`'a</x>b</x>c'.split('</x>', 1)[1]`:          "b</x>c",
		`'a</x>b</x>c'.split('</x>', maxsplit=0)[0]`: "a</x>b</x>c",
		`'a</x>b</x>c'.split('</x>')[-1]`:            "c",
		`' a  b\nc '.split()|join('|')`:              "a|b|c",
		`' a  b c '.split(none, 1)|join('|')`:        "a|b c ",
		`' a  b c '.rsplit(none, 1)|join('|')`:       " a  b|c",
		`''.split()|length`:                          "0",
		`''.split(',')|length`:                       "1",
		`'\n a \t'.strip()`:                          "a",
		`'\n\n a\n'.lstrip('\n')`:                    " a\n",
		`'xyaxy'.strip('yx')`:                        "a",
		`'xyaxy'.rstrip(chars='y')`:                  "xyax",
		`'aaa'.replace('a', 'b', 2)`:                 "bba",
		`'ß'.upper() ~ 'ΑΣ'.lower() ~ 'ǆ'.title()`:   "SSας" + "ǅ",
		`"they're".title() ~ "they're"|title`:        "They'ReThey're",
		`'it' "'" 's'`:                               "it's",
		`'\x41\u00e9\101\q\\' ~ "\'"`:                `AéA\q\'`,
		`'a\
b'`: "ab",
		`1 + 2 * 3 ** 2 // 4 - -1`:                                 "6",
		`2 ** 3 ** 2`:                                              "64",
		`-7 // 2 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 / 2`:                     "-4 2 3.5",
		`1e16 ~ ' ' ~ 1.0 ~ ' ' ~ 1_000 ~ ' ' ~ 0x1f`:              "1e+16 1.0 1000 31",
		`1 < 2 < 3 and not 1 < 3 < 2`:                              "True",
		`'a' ~ 'b' + 'c' * 2`:                                      "abcc",
		`[1, 'a', 1.5, none, true, (1,), {'k': "'"}]`:              `[1, 'a', 1.5, None, True, (1,), {'k': "'"}]`,
		`1 if false`:                                               "",
		`(1 if false else 2 if false else 3)`:                      "3",
		`[1, 2, 3][::-1] ~ [1, 2, 3][-2:] ~ 'abc'[1:9]`:            "[3, 2, 1][2, 3]bc",
		`'é'[0] ~ 'aé'[-1] ~ [5][-1] ~ [5][-2]`:                    "éé5",
		`{'items': 1}['items'] ~ {'a': 1}.a`:                       "11",
		`{1: 'a', 1.0: 'b', true: 'c'}`:                            "{1: 'c'}",
		`undefined_name is defined or {}.y is defined`:             "False",
		`undefined_name|length ~ undefined_name|upper`:             "0",
		`undefined_name == other_name`:                             "True",
		`undefined_name is none`:                                   "False",
		`none|default('d') ~ none|default('d', true)`:              "Noned",
		`'<' |e ~ '<' ~ ('<'|safe)`:                                "&lt;&lt;<",
		`2.5|round ~ ' ' ~ 3|round ~ ' ' ~ 2.55|round(1, 'floor')`: "2.0 3 2.5",
		`' 1_0 '|int ~ ' 2.7 '|int ~ 'x'|int(5) ~ '1e2'|float`:     "1025100.0",
		`[3, 'b', 'A'][1:]|sort|join ~ {'b': 1, 'A': 2}|dictsort`:  "Ab[('A', 2), ('b', 1)]",
		`[{'a': {'b': 2}}]|map(attribute='a.b')|sum`:               "2",
		`[1, 2, 3]|select('gt', 1)|map('string')|join('+')`:        "2+3",
		`none|selectattr('x')|list`:                                "[]",
		`'%s is %d%%'|format('x', 3) ~ '%r' % 'a'`:                 "x is 3%'a'",
		`'{} {1} {name} {{'.format(1, 2, name='n')`:                "1 2 n {",
		`range(5)[1:3] ~ range(3, 0, -1)|list`:                     "[1, 2][3, 2, 1]",
		`'a' in {'a': 1} and 'b' not in ['a'] and 2 is in [2]`:     "True",
		`true is number and 1 is not boolean and 'a' is sequence`:  "True",
		`{'b': 1, 'a': [1, 2.0, none, 'é<\n']}|tojson`:             `{"b": 1, "a": [1, 2.0, null, "é<\n"]}`,
		`{'a': {}, 'b': [1]}|tojson(indent=1)`:                     "{\n \"a\": {},\n \"b\": [\n  1\n ]\n}",
		`'a\n\nb'|indent(2) ~ 'a\nb'|indent('> ', first=true)`:     "a\n\n  b> a\n> b",
	} {
		got, err := render("{{ "+expression+" }}", nil)
		if assert.NoError(t, err, expression) {
			// A range shows itself as a list here: nothing in a template needs its name.
			assert.Equal(t, want, got, expression)
		}
	}
}

func TestStatements(t *testing.T) {
	for source, want := range map[string]string{
		"a \n  {% if true %}  \nb\n  {%- endif -%}\n c\n":                       "a \n  \nb" + "c",
		"a {% if true %} b {% endif %} c\n\n":                                   "a  b  c\n",
		"x\n  {#- y -#}  \n z {# w #}\n":                                        "xz ",
		"{% raw %}\n{{ x }} {% if %}{%- endraw %}":                              "\n{{ x }} {% if %}",
		"  {%+ if true +%}\n{% endif %}":                                        "  \n",
		"a\r\nb\rc":                                                             "a\nb\nc",
		"{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}": "123",
		"{% for x in [1, 2, 3, 4] if x > 1 %}{{ loop.index }}{{ x }}{% if x == 3 %}{% break %}{% endif %}{% endfor %}":                        "1223",
		"{% for x in [] %}{% else %}none{% endfor %}{% for x in [1, 2] %}{% continue %}x{% else %}none{% endfor %}":                           "none",
		"{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}":                                                          "21",
		"{% if true %}{% set x = 1 %}{% endif %}{{ x }}":                                                                                      "1",
		"{% macro m(a, b=a ~ 'b') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{% set c = 'C' %}{{ m(1) }}{{ m(1, b=2) }}":                            "11bC12C",
		"{% macro m(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) m(1) %}{{ y }}!{% endcall %}":                                              "<1!>",
		"{% set x | upper | trim %} a {{ 1 }} {% endset %}[{{ x }}]":                                                                          "[A 1]",
		"{% filter upper %}a{% endfilter %}{% with a=1, b=2 %}{{ a + b }}{% endwith %}{{ a is defined }}":                                     "A3False",
		"{% for x in [[1, [2]], 3] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}": "(12(23))31",
		"{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}":                                   "3",
		"{% for x in 'ab' %}{{ loop.cycle(1, 2) }}{{ loop.changed(x) }}{{ loop.previtem }}{{ loop.revindex0 }}{% endfor %}":                   "1True12Truea0",
		"{% generation %}{% set x = 1 %}g{% endgeneration %}{{ x is defined }}":                                                               "gFalse",
		"{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ 1, 2 }}":                                                                                       "12(1, 2)",
	} {
		got, err := render(source, nil)
		if assert.NoError(t, err, source) {
			assert.Equal(t, want, got, source)
		}
	}
}

// What Jinja2 or Python refuses, or what is not supported, is no text at all.
func TestRefusals(t *testing.T) {
	for source, want := range map[string]string{
		"{{ x + 'a' }}":                        "'x' is undefined",
		"{{ x.y }}":                            "'x' is undefined",
		"{{ {}.a.b }}":                         "no 'a'",
		"{{ x() }}":                            "'x' is undefined",
		"{{ x | tojson }}":                     "'x' is undefined",
		"{{ none + 'a' }}":                     "+ cannot be applied to a None",
		"{{ 'a' + 1 }}":                        "+ cannot be applied to a str and a int",
		"{{ 'a' < 1 }}":                        "no order",
		"{% for x in none %}{% endfor %}":      "None cannot be gone through",
		"{% for a, b in [(1,)] %}{% endfor %}": "1 values",
		"{{ [].append(1) }}":                   "does not let a template change a list",
		"{{ {}.update({}) }}":                  "does not let a template change a dict",
		"{{ ''.__class__ }}":                   "private",
		"{{ ''['__class__'] }}":                "private",
		"{{ 1 // 0 }}":                         "division by zero",
		"{{ 9223372036854775807 + 9 }}":        "too large",
		"{{ range(1000000) }}":                 "more than 100000",
		"{{ 'a' * 1000000000 }}":               "too long",
		"{{ 'a'.center(1000000000) }}":         "too long",
		"{{ [1]|map('upper') }}":               "generator cannot be shown",
		"{{ 'a'.split('') }}":                  "separator must not be empty",
		"{{ 'a'.replace('a') }}":               "needs the argument new",
		"{{ 'a'.strip(cutset='a') }}":          "no argument cutset",
		"{{ 'a'.split('a', sep='a') }}":        "twice",
		"{{ 'a' | frobnicate }}":               "filter frobnicate",
		"{{ 'a' is frobnicated }}":             "test frobnicated",
		"{% include 'x' %}":                    "block include is not supported",
		"{% extends '/etc/passwd' %}":          "block extends is not supported",
		"{% break %}":                          "outside a loop",
		"{% if true %}":                        "endif",
		"{% endif %}":                          "endif",
		"{{ f(*x) }}":                          "not supported",
		"{{ messages[0 }}":                     "unexpected }",
		"{{ 'a }}":                             "no closing",
		"{{ a":                                 "has no }}",
		"{# a":                                 "has no end",
		"{% raw %}a":                           "endraw",
		"a\n\n{{ 1 + }}":                       "line 3",
		"{{ raise('no') }}":                    "no",
		"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}":                                "deeper than",
		"{{ " + strings.Repeat("(", 10000) + strings.Repeat(")", 10000) + " }}":          "nests deeper",
		"{{ " + strings.Repeat("not ", 10000) + "1 }}":                                   "nests deeper",
		"{{ " + strings.Repeat("-", 1) + " " + strings.Repeat("- ", 10000) + "1 }}":      "nests deeper",
		strings.Repeat("{% if 1 %}", 10000):                                              "nests deeper",
		"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "makes more",
		"{% for a in range(99999) %}" + strings.Repeat("{{ 1 }}", 20) + "{% endfor %}":   "runs too long",
		"{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaa' * 1000 }}{% endfor %}":         "makes more",
		"{% set x = 'ab' %}" + strings.Repeat("{% set x = x ~ x %}", 40):                 "makes a text of more",
		"{% set x = 'ab' %}" + strings.Repeat("{% set x = x + x %}", 40):                 "makes a text of more",
		"{% set x = [1] %}" + strings.Repeat("{% set x = x + x %}", 40):                  "a list of",
		"{% set x = 'a' * 4000 %}{{ x.replace('a', x) | replace('a', x) }}":              "makes a text of more",
		"{% set x = 'a' * 4000 %}{{ x.join((x, x) * 1000) }}":                            "makes a text of more",
		"{% set x = ['a' * 4000] * 4000 %}{{ x }}":                                       "makes a text of more",
		"{% set x = ['a' * 4000] * 4000 %}{{ x | tojson }}":                              "makes a text of more",
		"{{ ('a\n' * 9000) | indent(9000) }}":                                            "makes a text of more",
		"{{ ('a' * 4000000) | list }}":                                                   "a text gone through",
		"{{ ('a' * 4000000).split('a') }}":                                               "a split of",
		"{{ (' a' * 2000000).split() }}":                                                 "a split of",
		"{{ ('\n' * 4000000).splitlines() }}":                                            "a split into lines",
		"{% set x = 'é' * 2000000 %}{{ x[1] ~ x[2] }}":                                   "makes more",
	} {
		var err error
		testlimit.Bound(t, func() {
			_, err = render(source, map[string]any{"raise": Func(func([]any, map[string]any) (any, error) { return nil, errors.New("no") })})
		})
		assert.ErrorContains(t, err, want, "%.80s", source)
	}
}

func TestErrorsOfFunctionsKeepTheirType(t *testing.T) {
	given := errors.New("given")
	_, err := render("{{ f() }}", map[string]any{"f": Func(func([]any, map[string]any) (any, error) { return nil, given })})
	require.ErrorIs(t, err, given)
}

func FuzzRender(f *testing.F) {
	for _, source := range []string{
		"{% for m in messages if m.role %}{{ m['content'] | trim + '\\n' }}{% else %}x{% endfor %}",
		"{% macro a(b, c=1) %}{{ b ~ c }}{% endmacro %}{{ a(1)[::-1] }}{% set ns = namespace(x=none) %}{% set ns.x = 1 %}",
		"{%- raw -%} {{ {% endraw +%}{# c -#} {{ {'a': [1, 2.5e3]}.a | tojson(indent=2) if a is defined else -1 }}",
		"{{ '%s %d' % ('a', 1) }}{{ 'x{}'.format(2) }}{{ range(3) | map('string') | join }}{{ 'É'.title().swapcase() }}",
	} {
		f.Add(source)
	}
	messages := NewList(NewDict().Set("role", "user").Set("content", " é\n"))
	f.Fuzz(func(t *testing.T, source string) {
		template, err := Parse(source)
		if err != nil {
			return
		}
		var first string
		testlimit.Bound(t, func() { first, err = template.Render(map[string]any{"messages": messages}) })
		second, err2 := template.Render(map[string]any{"messages": messages})
		require.Equal(t, err == nil, err2 == nil)
		require.Equal(t, first, second)
	})
}
