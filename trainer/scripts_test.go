package trainer_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// macScripts are what make, make demo and make test run, on a Mac too: by Bash 3.2 and BSD's tools, which nobody has here.
var macScripts = []string{"Makefile", "scripts/build-native", "scripts/native-digest", "scripts/install-deps", "scripts/fetch-model", "scripts/test", "scripts/sanitize"}

// notOnMac are what those lack, each with a line that has it and one that does not.
var notOnMac = []struct{ what, pattern, has, lacks string }{
	{"descriptors by name (Bash 4.1)", `exec \{`, `exec {fd}>"$1"`, `exec 9>"$1"`},
	{"mapfile (Bash 4)", `\b(mapfile|readarray)\b`, `mapfile -t lines`, `map files`},
	{"words in other cases (Bash 4)", `\$\{[a-zA-Z_0-9@]+(,,|\^\^)`, `${name,,}`, `${name,}"`},
	{"associative arrays (Bash 4)", `(declare|local|typeset) -[a-zA-Z]*A`, `declare -A seen`, `declare -a seen`},
	{"names of variables as references (Bash 4.3)", `(declare|local|typeset) -n`, `local -n to=$1`, `local n=$1`},
	{"the end of a list from behind (Bash 4.2)", `\$\{[a-zA-Z_]+\[-[0-9]+\]\}|\$\{[a-zA-Z_]+: ?-[0-9]+:?-?[0-9]*\[`, `${list[-1]}`, `${list[0]}`},
	{"&>> and |& (Bash 4)", `&>>|\|&`, `make |& tee log`, `a || b &`},
	{"globstar, wait -n, coproc (Bash 4)", `globstar|\bwait -n\b|\bcoproc\b`, `wait -n`, `wait "$pid"`},
	{"printf of the time (Bash 4.2)", `%\([^)]*\)T`, `printf '%(%s)T'`, `printf '%s'`},
	{"tests of variables (Bash 4.2)", `\[\[? -v `, `[[ -v JOBS ]]`, `[ -n "$JOBS" ]`},
	// A list of none counts as unset for Bash before 4.4: ${list[@]+"${list[@]}"} says nothing then.
	{"a list that may be empty", `(^|[^+])"\$\{(cuda_options|targets)\[@\]\}"`, `cmake "${targets[@]}"`, `cmake ${targets[@]+"${targets[@]}"}`},
	{"GNU's cp", `cp [^|;]*--|cp -[a-zA-Z]*[uTt]`, `cp -a --remove-destination a b`, `cp -a "$a" "$b"`},
	{"GNU's sed", `sed (-[a-zA-Z]*[ir]|--)|[^;{]p\}'|sed [^|]*s/[^']*\\t`, `sed -n '2,/^set /{/^set /d;s/^# //p}'`, `sed -n '2,/^set /{/^set /d;s/^# //p;}'`},
	{"readlink -f, realpath", `readlink -f|\brealpath\b`, `realpath "$MODEL"`, `readlink "$MODEL"`},
	{"GNU's stat, date, find", `stat (-c|--)|date (-d|--)|-printf`, `stat -c %s "$f"`, `date +%s`},
	{"sha256sum alone", `^[^#]*sha256sum`, `sha256sum <"$1" | cut -d' ' -f1`, `shasum -a 256 <"$1"`},
	{"nproc alone", `\bnproc\b`, `jobs=$(nproc)`, `jobs=$(getconf _NPROCESSORS_ONLN)`},
	{"sort -V", `sort -[a-zA-Z]*V`, `sort -V`, `sort -k1,1n`},
	{"GNU's expand, tac, timeout, taskset, ldd", `\b(tac|timeout|taskset|ldd)\b|expand -t 12$`, `timeout 5 x`, `go test -timeout 40m`},
}

// excused has what a line may hold that says the Mac's way too.
var excused = regexp.MustCompile(`shasum -a 256|getconf _NPROCESSORS_ONLN|-timeout 40m`)

func TestScriptsRunOnMac(t *testing.T) {
	for _, rule := range notOnMac {
		re := regexp.MustCompile(rule.pattern)
		if !re.MatchString(rule.has) {
			t.Errorf("%s: %q is not found", rule.what, rule.has)
		}
		if re.MatchString(rule.lacks) && !excused.MatchString(rule.lacks) {
			t.Errorf("%s: %q is found", rule.what, rule.lacks)
		}
		for _, name := range macScripts {
			src, err := os.ReadFile(filepath.Join(moduleRoot, name))
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(src), "\n") {
				if !strings.HasPrefix(strings.TrimSpace(line), "#") && re.MatchString(line) && !excused.MatchString(line) {
					t.Errorf("%s:%d: %s: %s", name, i+1, rule.what, line)
				}
			}
		}
	}
}

// Every script tells its usage by a line of sed that BSD's takes too.
func TestHelpOnMac(t *testing.T) {
	found := 0
	for _, folder := range []string{"scripts", "bench/*"} {
		files, err := filepath.Glob(filepath.Join(moduleRoot, folder, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			src, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(src, []byte("#!/usr/bin/env bash")) {
				continue // folders, other programs
			}
			if bytes.Contains(src, []byte(`//p}'`)) {
				t.Errorf("%s: BSD's sed wants a semicolon: //p;}'", path)
			}
			found++
		}
	}
	if found < 10 {
		t.Errorf("%d scripts were found", found)
	}
}
